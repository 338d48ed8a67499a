"""A search on a cluster that one machine cannot hold, by a clock of its own.

    .venv/bin/python -m benchmarks.scale_simulation              # up to 300 nodes, 3,000 trials
    .venv/bin/python -m benchmarks.scale_simulation --sizes 10x300 32x1000

What decides is real: `FrontPolicy` is asked and told as `tokenpool search` does it, and
`cluster.placement` and `Room` say how many trials run and where. What that costs is measured, in
processor seconds of this process. Only the cluster and the trainings are made up: a
discrete-event simulation of nodes that join, leave and die, and of trials that start, report,
pause, go on and end. The driver is one thread, as Tune's is: each report and each start keeps it
busy for what the decision was measured to take and for what Tune takes besides (see
benchmarks/scale_ray.py), and a trial goes on only when its report has been dealt with. So a policy
that is too slow shows as idle GPUs.

Writes benchmarks/results/scale-simulation.json and docs/scale-simulation.png.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
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

from benchmarks.machine import hardware
from benchmarks.packing import place
from benchmarks.scale_plot import plot
from benchmarks.scale_world import Assumptions, make_policy, trained, untrained
from cluster.capacity import Room
from cluster.placement import Gang, Node
from tune_spaces.policy import Score, Train
from tune_spaces.space import Candidate

ROOT = Path(__file__).parents[1]
WORKERS, GPUS = 8, 8  # one trial fills one node
FIRST, LAST = 3, 27  # epochs to the rung and to the end
ROUNDS = 4
SCHEDULES_PER_TRIAL = 2


@dataclass
class Trial:
    """One of the simulated trials."""

    name: str
    candidate: Candidate
    seconds_per_epoch: float
    epoch: int = 0
    nodes: dict[int, int] = field(default_factory=dict)
    life: int = 0  # counts restarts: events of an earlier life mean nothing
    leaving: bool = False  # it pauses or is over, and its processes may still be there


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
    """A search from its first schedule to its last trial.

    Args:
        num_nodes: of the cluster at its largest.
        num_trials: begun at most.
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
        self.num_scored = 0
        schedules = round(SCHEDULES_PER_TRIAL * num_trials)
        self.policy = make_policy(schedules, num_trials, ROUNDS, FIRST, LAST, seed)
        # The node it runs on has memory for as many drivers as Ray lets it have.
        self.room = QuietRoom(
            self.gang, nodes=self.present, clock=lambda: self.now, most_drivers=999
        )
        self.trials: dict[str, Trial] = {}
        self.running: dict[str, Trial] = {}
        self.homeless: list[Trial] = []  # lost a node and wait for room
        self.is_scoring, self.is_filling, self.is_over = False, False, False
        self.outcomes = dict.fromkeys(("done", "stopped"), 0)
        self.breeding, self.choosing, self.judging, self.passing = (Times() for _ in range(4))
        self.gpu_seconds = {"there": 0.0, "given": 0.0, "computing": 0.0, "scoring": 0.0}
        self.num_restarts, self.num_waits, self.most_late = 0, 0, 0.0

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
        """To the end of the search.

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
        self.at(0.0, "fill", False)
        while self.events and not self.is_over:
            when, _, kind, what = heapq.heappop(self.events)
            there = GPUS * len(self.alive) * (when - self.now)
            self.gpu_seconds["there"] += there
            self.gpu_seconds["given"] += self.held * (when - self.now)
            self.gpu_seconds["scoring"] += there if self.is_scoring else 0.0
            self.now = when
            getattr(self, f"on_{kind}")(what)

    # ----------------------------------------------------------------- events

    def on_fill(self, again: bool) -> None:
        """Does what the policy says next, while there is room; who lost its place comes first."""
        if again:
            self.is_filling = False  # with the last one; one such event is under way at a time
        while self.homeless and self.settle(self.homeless[0]):
            self.homeless.pop(0)
        if self.is_scoring or self.is_filling:
            return
        action = self.choosing.measure(self.policy.ask)
        self.busy(self.choosing.seconds[-1])
        if isinstance(action, Score):
            self.score(action)
        elif isinstance(action, Train):
            live = len(self.running) + len(self.homeless)
            if live < self.room(live, max(1, self.policy.num_left)):
                self.start(action)
        elif action is None:
            self.is_over = not self.running and not self.homeless

    def score(self, action: Score) -> None:
        """All GPUs score, while nothing trains."""
        if action.is_new:
            # What came before it was breeding and not choosing.
            self.breeding.seconds.append(self.choosing.seconds.pop())
            self.policy.asked(action.candidates)
        seconds = self.world.score * len(action.candidates) / (GPUS * len(self.alive))
        self.is_scoring = True
        self.at(max(self.now, self.driver_free) + seconds, "scored", action.candidates)

    def on_scored(self, candidates: tuple[Candidate, ...]) -> None:
        self.is_scoring = False
        self.num_scored += len(candidates)
        self.policy.scored(untrained(candidates))
        self.at(self.now, "fill", False)

    def start(self, action: Train) -> None:
        """A trial begins, or goes on from its rung."""
        if not action.is_new:
            trial = self.trials[action.trial_id]
            if trial.leaving:
                return  # its last processes are still there
            self.policy.resumed(trial.name)
        else:
            seconds = self.world.epoch_base + self.world.epoch_per_gmac * action.candidate.gmacs
            trial = Trial(action.trial_id, action.candidate, seconds)
            self.trials[trial.name] = trial
            self.policy.began(trial.name, action.candidate)
        started = self.busy(self.world.tune_per_start)
        self.running[trial.name] = trial
        self.at(started, "begin", trial)
        self.is_filling = True
        self.at(started, "fill", True)  # the next one, once this is done

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
        top1 = trained(trial.candidate, trial.epoch, LAST)
        times = self.judging if trial.epoch in (FIRST, LAST) else self.passing
        ends = times.measure(lambda: self.tell(trial, top1))
        handled = self.busy(times.seconds[-1] + self.world.tune_per_report)
        if ends:
            trial.leaving = True
            self.at(handled + self.world.teardown, "end", (trial, life))
        else:
            self.at(handled + trial.seconds_per_epoch, "report", (trial, life))

    def tell(self, trial: Trial, top1: float) -> bool:
        """What the listener of `tokenpool search` does; whether the trial ends here."""
        verdict = self.policy.reported(trial.name, trial.epoch, top1)
        if trial.epoch == LAST:
            self.policy.done(trial.name)
            self.outcomes["done"] += 1
            return True
        if verdict is None:
            return False
        self.outcomes["stopped"] += not verdict.kept
        return not verdict.kept or not self.policy.goes_on(trial.name)

    def on_end(self, what: tuple[Trial, int]) -> None:
        trial, life = what
        if life == trial.life:
            self.release(trial)
        trial.leaving = False
        self.running.pop(trial.name, None)
        self.at(self.now, "fill", False)

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
        self.at(self.now + self.room.look_every, "fill", False)

    def on_leave(self, nodes: Any) -> None:
        """Nodes die; trials on them go on from their last epoch where there is room."""
        gone = {index for index in nodes if index in self.alive}
        self.alive -= gone
        for index in gone:
            self.free.pop(index, None)
        for trial in [t for t in self.running.values() if gone & t.nodes.keys()]:
            self.release(trial)
            if not trial.leaving:
                self.num_restarts += 1
                del self.running[trial.name]
                self.homeless.append(trial)
        if len(gone) == 1:
            self.at(self.now + self.world.node_repair, "join", list(gone))
            mtbf = self.world.node_repair + float(self.rng.exponential(self.world.node_mtbf))
            self.at(self.now + mtbf, "leave", list(gone))
        self.at(self.now, "fill", False)

    def figures(self) -> dict[str, Any]:
        """What is stored of a run."""
        there, scoring = self.gpu_seconds["there"], self.gpu_seconds["scoring"]
        given = self.gpu_seconds["given"] + scoring
        return {
            "nodes": len(self.node),
            "gpus": GPUS * len(self.node),
            "scored": self.num_scored,
            "trials_at_most": self.num_trials,
            "trials": len(self.trials),
            **self.outcomes,
            "restarts": self.num_restarts,
            "starts_that_waited": self.num_waits,
            "simulated_hours": round(self.now / 3600, 2),
            "in_use": round(given / there, 4),
            "computing": round((self.gpu_seconds["computing"] + scoring) / there, 4),
            "driver_busy": round(self.driver_busy / self.now, 4),
            "driver_latest_s": round(self.most_late, 2),
            "choose": self.choosing.summary(),
            "judge": self.judging.summary(),
            "report_between": self.passing.summary(),
            "breed": self.breeding.summary(),
        }


def simulate(num_nodes: int, num_trials: int) -> dict[str, Any]:
    """One size, with the memory it took and how long the simulation itself ran."""
    process, start = psutil.Process(), time.process_time()
    before = process.memory_info().rss
    simulation = Simulation(num_nodes, num_trials)
    simulation.run()
    after = process.memory_info().rss
    return simulation.figures() | {
        "memory_mb": round((after - before) / 2**20, 1),
        "rss_mb": round(after / 2**20, 1),
        "cpu_s": round(time.process_time() - start, 1),
        "load": [round(load, 1) for load in os.getloadavg()],
    }


def main() -> None:
    """Runs each size in a process of its own, so that memory is its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["10x300", "32x1000", "300x3000"],
        help="nodes x trials at most",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/scale-simulation.json"
    )
    parser.add_argument("--plot", type=Path, default=ROOT / "docs/scale-simulation.png")
    arguments = parser.parse_args()
    rows = []
    for size in arguments.sizes:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            row = pool.submit(simulate, *map(int, size.split("x"))).result()
        rows.append(row)
        print(json.dumps(row), flush=True)
    found = {
        "command": "python -m benchmarks.scale_simulation",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware("cpu"),
        "assumptions": asdict(Assumptions())
        | {"workers": WORKERS, "first": FIRST, "last": LAST, "rounds": ROUNDS},
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
