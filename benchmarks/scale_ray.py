"""A thousand real Tune trials on eight Ray nodes of eight GPUs, all on this machine.

    .venv/bin/python benchmarks/scale_ray.py            # 1,000 trials, a few minutes on two cores

The nodes are Ray processes of their own, the GPUs are counted and not there, and a trial takes
no time. The rest is real: `FrontSearcher` gives out the trials, one beyond what has room waits
(`Room`), `ParetoHalving` stops most of them, Tune starts, reuses and ends their actors, and what it
keeps of those that are over is let go (`Forgetting`). What is looked for: that all end, that every
resource comes back, that the driver's memory stays where it is, and what Tune itself costs for each
trial and each report.

Writes benchmarks/results/scale-ray.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from ray import tune
from ray.cluster_utils import Cluster
from ray.tune.search import Searcher

from cluster.capacity import Room, present_nodes
from cluster.placement import Gang, fit
from pipelines.train.tune_records import Forgetting, write_little
from tokenpool.benchmark import hardware
from tune_spaces.scheduler import ParetoHalving
from tune_spaces.searcher import FrontSearcher

ROOT = Path(__file__).parents[1]
GPUS_PER_NODE = 8
RUNGS, EPOCHS = [1, 2], 4


def counting() -> type[tune.Trainable]:
    """A class made here travels to the workers by value, whoever imports this file."""

    class Counting(tune.Trainable):
        """A trial whose top-1 follows from its config."""

        def setup(self, config: dict[str, Any]) -> None:
            self.final = config["top1"]

        def step(self) -> dict[str, Any]:
            epoch = self.iteration + 1
            return {"epoch": epoch, "top1": self.final * epoch / EPOCHS, "done": epoch == EPOCHS}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.final = new_config["top1"]
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            return None

        def load_checkpoint(self, checkpoint: Any) -> None:
            return None

    return Counting


@dataclass
class Seen:
    """What was seen while the trials ran."""

    suggest_s: list[float] = field(default_factory=list)
    judge_s: list[float] = field(default_factory=list)
    rss_mb: list[tuple[int, float]] = field(default_factory=list)
    most_running: int = 0
    num_reports: int = 0


class TimedSearcher(FrontSearcher):
    """Gives out trials while there is room, and keeps the time."""

    def __init__(self, candidates: list[dict[str, Any]], room: Room, seen: Seen) -> None:
        super().__init__(candidates, predicted="screened_top1")
        self.room, self.seen, self.running, self.over = room, seen, set[str](), 0

    def suggest(self, trial_id: str) -> Any:
        start = time.thread_time()
        if self.num_left and len(self.running) >= self.room(len(self.running), self.num_left):
            return None
        config = super().suggest(trial_id)
        self.seen.suggest_s.append(time.thread_time() - start)
        if config != Searcher.FINISHED:
            self.running.add(trial_id)
            self.seen.most_running = max(self.seen.most_running, len(self.running))
        return config

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        super().on_trial_complete(trial_id, result, error)
        self.running.discard(trial_id)
        self.over += 1
        if self.over % 50 == 0:
            rss = psutil.Process().memory_info().rss / 2**20
            self.seen.rss_mb.append((self.over, round(rss, 1)))

    def save(self, checkpoint_path: str) -> None:
        return None  # nothing is restored here


class TimedScheduler(ParetoHalving):
    """Keeps the time of each report."""

    seen: Seen

    def on_trial_result(self, *arguments: Any) -> str:
        start = time.thread_time()
        answer = super().on_trial_result(*arguments)
        self.seen.judge_s.append(time.thread_time() - start)
        self.seen.num_reports += 1
        return answer


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Of the last hundred decisions."""
    values = 1000 * np.array(seconds[-100:])
    return {
        "median_ms": round(float(np.median(values)), 3),
        "max_ms": round(float(values.max()), 3),
    }


def run(num_nodes: int, num_trials: int, gpus_per_trial: int) -> dict[str, Any]:
    """The experiment, on a cluster that is started and ended for it."""
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "16"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    write_little()
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    for _ in range(num_nodes):
        cluster.add_node(num_cpus=8, num_gpus=GPUS_PER_NODE, object_store_memory=80 * 2**20)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        return experiment(num_trials, Gang(1, 0.5, float(gpus_per_trial)))
    finally:
        ray.shutdown()
        cluster.shutdown()


def experiment(num_trials: int, gang: Gang) -> dict[str, Any]:
    """All trials, and what is left of the cluster afterwards."""
    rng = np.random.default_rng(0)
    gmacs = rng.random(num_trials)
    top1 = np.sqrt(gmacs) - 0.1 * rng.random(num_trials)
    candidates = [
        {"gmacs": g, "top1": q, "screened_top1": q}
        for g, q in zip(gmacs.tolist(), top1.tolist(), strict=True)
    ]
    expected, seen = fit(present_nodes(), gang), Seen()
    before = resources()
    searcher = TimedSearcher(candidates, Room(gang), seen)
    scheduler = TimedScheduler("top1", rungs=RUNGS, noise=0.005)
    scheduler.seen = seen
    gc.collect()
    begun, busy = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        results = tune.Tuner(
            tune.with_resources(counting(), tune.PlacementGroupFactory([gang.bundle()])),
            tune_config=tune.TuneConfig(
                search_alg=searcher, scheduler=scheduler, num_samples=num_trials, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                callbacks=[Forgetting()],
                # As in a search, where Ray Train keeps them: Tune holds none.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    seconds, busy = time.monotonic() - begun, time.process_time() - busy
    statuses = Counter("failed" if results[i].error else "ended" for i in range(len(results)))
    deadline = time.monotonic() + 60
    while (after := resources()) != before and time.monotonic() < deadline:
        time.sleep(1)
    groups = [g for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
    kept = sum(decision.verdict.kept for decision in scheduler.decisions)
    rss = seen.rss_mb
    return {
        "nodes": len(ray.nodes()) - 1,
        "gpus": int(before["GPU"]),
        "gpus_per_trial": int(gang.gpus),
        "room": expected.jobs,
        "most_running": seen.most_running,
        "trials": dict(statuses),
        "decisions": {"kept": kept, "stopped": len(scheduler.decisions) - kept},
        "reports": seen.num_reports,
        "seconds": round(seconds, 1),
        "resources_back": after == before,
        "placement_groups_left": len(groups),
        "driver_rss_mb": rss,
        "driver_kb_per_trial": slope_kb(rss[len(rss) // 4 :]),
        "suggest": milliseconds(seen.suggest_s),
        "judge": milliseconds(seen.judge_s),
        "driver_cpu_s": round(busy, 1),
        "driver_cpu_ms_per_trial": round(1000 * busy / num_trials, 2),
    }


def resources() -> dict[str, float]:
    """What is free, without memory and names of nodes."""
    free = ray.available_resources()
    return {name: round(free.get(name, 0.0), 4) for name in ("CPU", "GPU")}


def slope_kb(points: list[tuple[int, float]]) -> float | None:
    """KB for each trial, by least squares over (trials, MB)."""
    if len(points) < 2:
        return None
    x, y = np.array(points, dtype=float).T
    return round(1024 * float(np.polyfit(x, y, 1)[0]), 2)


def main() -> None:
    """Runs and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--gpus-per-trial", type=int, default=4)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/scale-ray.json")
    arguments = parser.parse_args()
    found = {
        "command": "python benchmarks/scale_ray.py",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware("cpu"),
        "versions": {package: version(package) for package in ("ray", "numpy")},
        **run(arguments.nodes, arguments.trials, arguments.gpus_per_trial),
    }
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
