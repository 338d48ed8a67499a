"""A search on a cluster that one machine cannot hold, by a clock of its own.

    .venv/bin/python benchmarks/scale_simulation.py            # up to 1,000 nodes, 100,000 trials
    .venv/bin/python benchmarks/scale_simulation.py --sizes 10 32 --trials-per-node 100

What decides is real: `FrontSearcher` hands out the trials, `ParetoHalving` judges their reports,
`cluster.placement` and `Room` say how many run and where. What they cost is measured, in
processor seconds of this process. Only the cluster is made up: a discrete-event simulation of
nodes that join, leave and die, and of trials that start, report and end. The driver is one
thread, as Tune's is: each report and each start keeps it busy for what the decision was measured
to take and for what Tune takes besides (see benchmarks/scale_ray.py), and a trial goes on only
when its report has been dealt with. So a controller that is too slow shows as idle GPUs.

Writes benchmarks/results/scale-simulation.json and docs/scale-simulation.png.
"""

from __future__ import annotations

import argparse
import heapq
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from cluster.capacity import Room
from cluster.placement import Gang, Node, place
from tokenpool.benchmark import hardware
from tune_spaces.scheduler import ParetoHalving
from tune_spaces.searcher import FrontSearcher

ROOT = Path(__file__).parents[1]
WORKERS, GPUS = 8, 8  # one trial fills one node
RUNGS, EPOCHS = [3, 9], 27


@dataclass(frozen=True)
class Assumptions:
    """What is made up; seconds where nothing else is said."""

    epoch_base: float = 20.0  # loading, evaluation
    epoch_per_gmac: float = 12.0  # ImageNet on eight GPUs: DeiT-S about 75 s an epoch
    start: float = 20.0  # of a trial's processes, GPUs held and not yet computing
    teardown: float = 3.0  # until the GPUs of a trial that ended are free
    tune_per_report: float = 0.006  # of the driver, beside the decision: benchmarks/scale_ray.py
    tune_per_start: float = 0.060
    node_mtbf: float = 1000 * 3600.0  # of each node
    node_repair: float = 900.0
    top1_noise: float = 0.002


@dataclass
class Trial:
    """One of the simulated trials."""

    name: str
    config: dict[str, float]
    final_top1: float
    seconds_per_epoch: float
    epoch: int = 0
    nodes: dict[int, int] = field(default_factory=dict)
    life: int = 0  # counts restarts: events of an earlier life mean nothing
    over: bool = False


class Times:
    """Seconds a kind of decision took, in the order they were made."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def measure(self, call: Callable[[], Any]) -> Any:
        start = time.thread_time()
        answer = call()
        self.seconds.append(time.thread_time() - start)
        return answer

    def summary(self, last: int = 1000) -> dict[str, float]:
        """Milliseconds of the last decisions."""
        values = 1000 * np.array(self.seconds[-last:] or [0.0])
        return {
            "median_ms": round(float(np.median(values)), 4),
            "p99_ms": round(float(np.quantile(values, 0.99)), 4),
            "max_ms": round(float(values.max()), 4),
        }


class QuietRoom(Room):
    """There is no autoscaler to be told anything."""

    def _ask(self, jobs: int) -> None:
        return None


class Simulation:
    """A search from its first trial to its last.

    Args:
        num_nodes: of the cluster at its largest.
        num_trials: candidates, all of which are tried.
        seed: of everything random.
        world: what is assumed.
    """

    def __init__(
        self, num_nodes: int, num_trials: int, seed: int = 0, world: Assumptions | None = None
    ) -> None:
        self.world = world or Assumptions()
        self.rng = np.random.default_rng(seed)
        self.num_trials = num_trials
        self.gang = Gang(WORKERS, 4.0, 1.0)
        self.node = {i: Node(str(i), 64.0, GPUS, "H100") for i in range(num_nodes)}
        self.alive = set(range(num_nodes))
        self.free = dict.fromkeys(range(num_nodes), GPUS)  # of nodes that have any
        self.held = 0
        self.now, self.driver_free, self.driver_busy = 0.0, 0.0, 0.0
        self.events: list[tuple[float, int, str, Any]] = []
        self.counter = 0
        gmacs = self.rng.uniform(0.5, 4.6, num_trials)
        reachable = 0.82 - 0.25 * np.exp(-1.2 * gmacs)
        top1 = reachable - self.rng.exponential(0.02, num_trials)
        predicted = top1 + self.rng.normal(0, 0.01, num_trials)
        self.candidates = [
            {"gmacs": g, "screened_top1": p, "number": n}
            for n, (g, p) in enumerate(zip(gmacs.tolist(), predicted.tolist(), strict=True))
        ]
        self.top1 = top1
        self.searcher = FrontSearcher(self.candidates, predicted="screened_top1")
        self.scheduler = ParetoHalving("top1", ["gmacs"], rungs=RUNGS, noise=0.004)
        # The node it runs on has memory for as many drivers as Ray lets it have.
        self.room = QuietRoom(
            self.gang, nodes=self.present, clock=lambda: self.now, most_drivers=999
        )
        self.running: dict[str, Trial] = {}
        self.homeless: list[Trial] = []  # lost a node and wait for room
        self.ended, self.num_ended = {"done": 0, "stopped": 0}, 0
        self.suggesting, self.judging, self.passing = Times(), Times(), Times()
        self.gpu_seconds = {"there": 0.0, "given": 0.0, "computing": 0.0}
        self.num_restarts, self.num_waits, self.most_late = 0, 0, 0.0
        self.curve: list[dict[str, float]] = []

    def present(self) -> list[Node]:
        return [self.node[i] for i in sorted(self.alive)]

    # ------------------------------------------------------------------ clock

    def at(self, when: float, kind: str, what: Any) -> None:
        self.counter += 1
        heapq.heappush(self.events, (when, self.counter, kind, what))

    def busy(self, seconds: float) -> float:
        """The driver does something; when it is done."""
        begin = max(self.now, self.driver_free)
        self.most_late = max(self.most_late, begin - self.now)
        self.driver_free = begin + seconds
        self.driver_busy += seconds
        return self.driver_free

    def run(self, grow: bool = True) -> None:
        """To the end of the last trial.

        Args:
            grow: the cluster begins with half its nodes, and a fifth of them leave for a while.
        """
        total = len(self.node)
        if grow and total >= 4:
            self.on_leave(range(total // 2, total))
            self.at(1200.0, "join", range(total // 2, total))
            self.at(6000.0, "leave", range(total - total // 5, total))
            self.at(9000.0, "join", range(total - total // 5, total))
        for index in range(total):
            self.at(float(self.rng.exponential(self.world.node_mtbf)), "leave", [index])
        self.at(0.0, "fill", None)
        while self.events and (self.running or self.homeless or self.searcher.num_left):
            when, _, kind, what = heapq.heappop(self.events)
            self.gpu_seconds["there"] += GPUS * len(self.alive) * (when - self.now)
            self.gpu_seconds["given"] += self.held * (when - self.now)
            self.now = when
            getattr(self, f"on_{kind}")(what)

    # ----------------------------------------------------------------- events

    def on_fill(self, _: Any) -> None:
        """Hands out trials while there is room, those that lost their place first."""
        while self.homeless:
            if not self.settle(self.homeless[0]):
                break
            self.homeless.pop(0)
        if not self.searcher.num_left:
            return
        live = len(self.running) + len(self.homeless)
        if live < self.room(live, self.searcher.num_left):
            name = f"t{self.num_trials - self.searcher.num_left:06d}"
            config = self.suggesting.measure(lambda: self.searcher.suggest(name))
            started = self.busy(self.suggesting.seconds[-1] + self.world.tune_per_start)
            trial = Trial(
                name,
                config,
                float(self.top1[config["number"]]),
                self.world.epoch_base + self.world.epoch_per_gmac * config["gmacs"],
            )
            self.at(started, "begin", trial)
            self.running[name] = trial
            self.at(started, "fill", None)  # the next one, once this is done

    def on_begin(self, trial: Trial) -> None:
        if not self.settle(trial):
            self.num_waits += 1  # a node left within the last seconds
            self.running.pop(trial.name)
            self.homeless.append(trial)

    def settle(self, trial: Trial) -> bool:
        """Puts a trial's workers on nodes, if there is room."""
        index = list(self.free)
        chosen = place([self.free[i] for i in index], WORKERS)
        if chosen is None:
            return False
        trial.nodes = {index[k]: count for k, count in chosen.items()}
        for node, count in trial.nodes.items():
            self.free[node] -= count
            if not self.free[node]:
                del self.free[node]
        self.held += WORKERS
        self.running[trial.name] = trial
        first = self.now + self.world.start + trial.seconds_per_epoch
        self.at(first, "report", (trial, trial.life))
        return True

    def on_report(self, what: tuple[Trial, int]) -> None:
        trial, life = what
        if life != trial.life:
            return
        trial.epoch += 1
        self.gpu_seconds["computing"] += WORKERS * trial.seconds_per_epoch
        learned = 1 - 0.6 * np.exp(-trial.epoch / 6)
        top1 = trial.final_top1 * learned + self.rng.normal(0, self.world.top1_noise)
        report = {"epoch": trial.epoch, "top1": float(top1)}
        times = self.judging if trial.epoch in RUNGS else self.passing
        verdict = times.measure(lambda: self.scheduler.report(trial.name, trial.config, report))
        handled = self.busy(times.seconds[-1] + self.world.tune_per_report)
        trial.over = trial.epoch == EPOCHS or (verdict is not None and not verdict.kept)
        if trial.over:
            self.ended["done" if trial.epoch == EPOCHS else "stopped"] += 1
            self.at(handled + self.world.teardown, "end", (trial, life))
        else:
            self.at(handled + trial.seconds_per_epoch, "report", (trial, life))

    def on_end(self, what: tuple[Trial, int]) -> None:
        trial, life = what
        if life == trial.life:
            self.release(trial)
        self.running.pop(trial.name, None)
        self.searcher.on_trial_complete(trial.name)
        self.num_ended += 1
        if self.num_ended % max(1, self.num_trials // 20) == 0:
            self.curve.append(
                {
                    "trials": self.num_ended,
                    "suggest_ms": self.suggesting.summary(500)["median_ms"],
                    "judge_ms": self.judging.summary(500)["median_ms"],
                    "rss_mb": round(psutil.Process().memory_info().rss / 2**20, 1),
                }
            )
        self.at(self.now, "fill", None)

    def release(self, trial: Trial) -> None:
        for node, count in trial.nodes.items():
            if node in self.alive:
                self.free[node] = self.free.get(node, 0) + count
        self.held -= WORKERS
        trial.nodes = {}
        trial.life += 1

    def on_join(self, nodes: Any) -> None:
        for index in nodes:
            if index not in self.alive:
                self.alive.add(index)
                self.free[index] = GPUS
        self.at(self.now + self.room.look_every, "fill", None)

    def on_leave(self, nodes: Any) -> None:
        """Nodes die; trials on them go on from their last epoch where there is room."""
        gone = {index for index in nodes if index in self.alive}
        self.alive -= gone
        for index in gone:
            self.free.pop(index, None)
        for trial in [t for t in self.running.values() if gone & t.nodes.keys()]:
            self.release(trial)
            if not trial.over:
                self.num_restarts += 1
                del self.running[trial.name]
                self.homeless.append(trial)
        if len(gone) == 1:
            self.at(self.now + self.world.node_repair, "join", list(gone))
            mtbf = self.world.node_repair + float(self.rng.exponential(self.world.node_mtbf))
            self.at(self.now + mtbf, "leave", list(gone))
        self.at(self.now, "fill", None)

    def figures(self) -> dict[str, Any]:
        """What is stored of a run."""
        there = self.gpu_seconds["there"]
        return {
            "nodes": len(self.node),
            "gpus": GPUS * len(self.node),
            "trials": self.num_trials,
            **self.ended,
            "restarts": self.num_restarts,
            "starts_that_waited": self.num_waits,
            "simulated_hours": round(self.now / 3600, 2),
            "in_use": round(self.gpu_seconds["given"] / there, 4),
            "computing": round(self.gpu_seconds["computing"] / there, 4),
            "driver_busy": round(self.driver_busy / self.now, 4),
            "driver_latest_s": round(self.most_late, 2),
            "suggest": self.suggesting.summary(),
            "judge": self.judging.summary(),
            "report_between_rungs": self.passing.summary(),
            "curve": self.curve,
        }


def judge_whole_ms(simulation: Simulation, repeats: int = 5) -> float:
    """What a verdict takes that looks at the whole rung, as the rule is defined."""
    scheduler = simulation.scheduler
    rung = dict(scheduler.rungs[RUNGS[0]])
    name, seconds = next(reversed(rung)), []
    for _ in range(repeats):
        start = time.thread_time()
        scheduler.rule.judge(name, rung)
        seconds.append(time.thread_time() - start)
    return round(1000 * float(np.median(seconds)), 3)


def simulate(num_nodes: int, num_trials: int) -> dict[str, Any]:
    """One size, with the memory it took and how long the simulation itself ran."""
    process, start = psutil.Process(), time.process_time()
    before = process.memory_info().rss
    simulation = Simulation(num_nodes, num_trials)
    simulation.run()
    after = process.memory_info().rss
    return simulation.figures() | {
        "judge_whole_ms": judge_whole_ms(simulation),
        "memory_kb_per_trial": round((after - before) / num_trials / 1024, 2),
        "rss_mb": round(after / 2**20, 1),
        "cpu_s": round(time.process_time() - start, 1),
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Work per decision, memory, and GPU time in use, against the number of trials."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    work, memory, use = figure.subplots(1, 3)
    trials = [row["trials"] for row in rows]
    for key, label, style in (
        ("judge", "a verdict", "o-"),
        ("suggest", "a suggestion", "s-"),
    ):
        (line,) = work.plot(trials, [row[key]["median_ms"] for row in rows], style, label=label)
        work.plot(trials, [row[key]["p99_ms"] for row in rows], ":", color=line.get_color())
    whole = [row["judge_whole_ms"] for row in rows]
    work.plot(trials, whole, "x--", color="0.6", label="a verdict, looking at all")
    work.set(xscale="log", yscale="log", ylabel="ms of processor time", title="Work per decision")
    work.axhline(20, color="0.8", linewidth=1)
    work.legend(fontsize=8, title="dotted: 99th percentile", title_fontsize=7)
    memory.plot(trials, [row["rss_mb"] for row in rows], "o-")
    memory.set(xscale="log", ylabel="MB", title="Memory of the process")
    use.plot(trials, [100 * row["in_use"] for row in rows], "o-", label="given to a trial")
    use.plot(trials, [100 * row["computing"] for row in rows], "s-", label="computing")
    use.plot(trials, [100 * row["driver_busy"] for row in rows], "^--", label="driver busy")
    use.axhline(95, color="0.8", linewidth=1)
    use.set(xscale="log", ylabel="% of the time", ylim=(0, 102), title="GPUs and driver")
    use.legend(fontsize=8)
    for axes in (work, memory, use):
        axes.set_xlabel("trials (100 for each node of 8 GPUs)")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs each size in a process of its own, so that memory is its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 32, 100, 320, 1000])
    parser.add_argument("--trials-per-node", type=int, default=100)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/scale-simulation.json"
    )
    parser.add_argument("--plot", type=Path, default=ROOT / "docs/scale-simulation.png")
    arguments = parser.parse_args()
    rows = []
    for num_nodes in arguments.sizes:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            row = pool.submit(simulate, num_nodes, num_nodes * arguments.trials_per_node).result()
        rows.append(row)
        print(json.dumps({key: value for key, value in row.items() if key != "curve"}), flush=True)
    found = {
        "command": "python benchmarks/scale_simulation.py",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware("cpu"),
        "assumptions": asdict(Assumptions())
        | {"workers": WORKERS, "rungs": RUNGS, "epochs": EPOCHS},
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
