"""Seven hundred trainings as real Tune trials on eight Ray nodes of eight GPUs, on this machine.

    .venv/bin/python -m benchmarks.scale_ray            # some minutes on two cores

The nodes are Ray processes of their own, the GPUs are counted and not there, and a trial takes no
time. The rest is real: `FrontPolicy` says what begins and what goes on, through the queue and the
scheduler of `pipelines.trials.run_trials`; one beyond what has room waits (`Room`); Tune starts,
reuses and ends their actors, and what it keeps of those that are over is let go (`Forgetting`). A
training that pauses at its rung goes on as another Tune trial, as in a search. What is looked for:
that all end, that every resource comes back, that the driver's memory stays where it is, and what
a decision and Tune itself cost.

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

from benchmarks.machine import hardware
from benchmarks.scale_world import make_policy, trained, untrained
from cluster.capacity import Room, present_nodes
from cluster.placement import Gang, fit
from pipelines.train.reports import Report
from pipelines.trials.run_trials import _Events, _Queue, _Reports
from pipelines.trials.tune_records import Forgetting, write_little
from tune_spaces.policy import Score, Train

ROOT = Path(__file__).parents[1]
GPUS_PER_NODE = 8
FIRST, LAST, ROUNDS = 1, 3, 2
SCHEDULES_PER_TRAINING = 2


def counting() -> type[tune.Trainable]:
    """A class made here travels to the workers by value, whoever imports this file."""

    class Counting(tune.Trainable):
        """A training whose top-1 after each epoch stands in its config."""

        def setup(self, config: dict[str, Any]) -> None:
            self.top1 = dict(config["top1"])  # of the epochs that are left
            self.last = max(self.top1)

        def step(self) -> dict[str, Any]:
            epoch = min(self.top1)
            return {
                "epoch": epoch,
                "top1_minival": self.top1.pop(epoch),
                "done": epoch == self.last,
            }

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            return None

        def load_checkpoint(self, checkpoint: Any) -> None:
            return None

    return Counting


@dataclass
class Leg:
    """A training from its begin to its rung, or from there to its end."""

    trial: Train
    epoch: int  # done before

    def config(self) -> dict[str, Any]:
        candidate, left = self.trial.candidate, range(self.epoch + 1, LAST + 1)
        return {
            "trial_id": self.trial.trial_id,
            "top1": {epoch: trained(candidate, epoch, LAST) for epoch in left},
        }


class Driver:
    """What `tokenpool search` does between its policy and Tune, without a ledger.

    Args:
        num_trainings: begun at most.
    """

    def __init__(self, num_trainings: int) -> None:
        schedules = SCHEDULES_PER_TRAINING * num_trainings
        self.policy = make_policy(schedules, num_trainings, ROUNDS, FIRST, LAST)
        self.leaving = set[str]()
        self.told: Counter[str] = Counter()
        self.report_s: list[float] = []

    @property
    def waiting(self) -> int:
        return max(1, self.policy.num_left) if isinstance(self.policy.ask(), Train) else 0

    def next(self) -> Leg | None:
        action = self.policy.ask()
        if not isinstance(action, Train) or action.trial_id in self.leaving:
            return None
        if action.is_new:
            self.policy.began(action.trial_id, action.candidate)
        else:
            self.policy.resumed(action.trial_id)
        self.told["begun" if action.is_new else "resumed"] += 1
        return Leg(action, 0 if action.is_new else FIRST)

    def report(self, job_id: str, report: Report) -> bool:
        start = time.thread_time()
        verdict = self.policy.reported(job_id, report.epoch, report.top1_minival)
        goes_on = verdict is None or (verdict.kept and self.policy.goes_on(job_id))
        self.report_s.append(time.thread_time() - start)
        self.told["reports"] += 1
        if not goes_on:
            self.leaving.add(job_id)
            self.told["paused" if verdict is not None and verdict.kept else "stopped"] += 1
        return goes_on

    def finished(self, job_id: str, report: Report | None, checkpoint: str | None) -> None:
        if job_id in self.leaving:
            self.leaving.remove(job_id)
        else:
            self.policy.done(job_id)
            self.told["done"] += 1

    def failed(self, job_id: str, reason: str) -> None:
        self.policy.failed(job_id)
        self.told["failed"] += 1


@dataclass
class Seen:
    """What was seen while the trials ran."""

    suggest_s: list[float] = field(default_factory=list)
    rss_mb: list[tuple[int, float]] = field(default_factory=list)
    most_running: int = 0
    over: int = 0


class TimedQueue(_Queue):
    """Keeps the time of what it gives out."""

    def __init__(self, driver: Driver, room: Room, seen: Seen) -> None:
        super().__init__(driver, room, None)  # type: ignore[arg-type]
        self.seen = seen

    def suggest(self, trial_id: str) -> Any:
        start = time.thread_time()
        config = super().suggest(trial_id)
        if isinstance(config, dict):
            self.seen.suggest_s.append(time.thread_time() - start)
            self.seen.most_running = max(self.seen.most_running, len(self._running))
        return config

    def on_trial_complete(self, trial_id: str, *arguments: Any, **options: Any) -> None:
        super().on_trial_complete(trial_id, *arguments, **options)
        self.seen.over += 1
        if self.seen.over % 50 == 0:
            rss = psutil.Process().memory_info().rss / 2**20
            self.seen.rss_mb.append((self.seen.over, round(rss, 1)))


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Of the last five hundred decisions."""
    values = 1000 * np.array(seconds[-500:])
    return {
        "median_ms": round(float(np.median(values)), 3),
        "p99_ms": round(float(np.quantile(values, 0.99)), 3),
        "max_ms": round(float(values.max()), 3),
    }


def run(num_nodes: int, num_trainings: int, gpus_per_trial: int) -> dict[str, Any]:
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
        return search(num_trainings, Gang(1, 0.5, float(gpus_per_trial)))
    finally:
        ray.shutdown()
        cluster.shutdown()


def search(num_trainings: int, gang: Gang) -> dict[str, Any]:
    """All rounds, and what is left of the cluster afterwards."""
    expected, seen, driver = fit(present_nodes(), gang), Seen(), Driver(num_trainings)
    before = resources()
    gc.collect()
    seconds = busy = 0.0
    statuses: Counter[str] = Counter()
    while (action := driver.policy.ask()) is not None:
        if isinstance(action, Score):
            if action.is_new:
                driver.policy.asked(action.candidates)
            driver.policy.scored(untrained(action.candidates))
            continue
        begun, started = time.monotonic(), time.process_time()
        results = experiment(driver, TimedQueue(driver, Room(gang), seen), gang)
        seconds, busy = seconds + time.monotonic() - begun, busy + time.process_time() - started
        statuses.update("failed" if results[i].error else "ended" for i in range(len(results)))
    deadline = time.monotonic() + 60
    while (after := resources()) != before and time.monotonic() < deadline:
        time.sleep(1)
    groups = [g for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
    num_trials = statuses.total()
    return {
        "nodes": len(ray.nodes()) - 1,
        "gpus": int(before["GPU"]),
        "gpus_per_trial": int(gang.gpus),
        "room": expected.jobs,
        "most_running": seen.most_running,
        "trials": dict(statuses),
        "trainings": dict(driver.told),
        "seconds": round(seconds, 1),
        "resources_back": after == before,
        "placement_groups_left": len(groups),
        "driver_rss_mb": seen.rss_mb,
        "driver_kb_per_trial": slope_kb(seen.rss_mb[len(seen.rss_mb) // 4 :]),
        "suggest": milliseconds(seen.suggest_s),
        "report": milliseconds(driver.report_s),
        "driver_cpu_s": round(busy, 1),
        "driver_cpu_ms_per_trial": round(1000 * busy / num_trials, 2),
        "load": [round(load, 1) for load in os.getloadavg()],
    }


def experiment(driver: Driver, queue: TimedQueue, gang: Gang) -> tune.ResultGrid:
    """The trials of a round."""
    with tempfile.TemporaryDirectory() as folder:
        return tune.Tuner(
            tune.with_resources(counting(), tune.PlacementGroupFactory([gang.bundle()])),
            tune_config=tune.TuneConfig(
                num_samples=-1,  # the queue says when there are no more
                search_alg=queue,
                scheduler=_Reports(driver, None),
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                callbacks=[_Events(driver, None), Forgetting()],
                # As in a search, where Ray Train keeps them: Tune holds none.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()


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
    parser.add_argument("--trainings", type=int, default=700)
    parser.add_argument("--gpus-per-trial", type=int, default=4)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/scale-ray.json")
    arguments = parser.parse_args()
    found = {
        "command": "python -m benchmarks.scale_ray",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware("cpu"),
        "versions": {package: version(package) for package in ("ray", "numpy")},
        **run(arguments.nodes, arguments.trainings, arguments.gpus_per_trial),
    }
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
