"""Ray nodes that die and join under a running experiment: three real ones on this machine.

What gives out the trials, counts the room and says how workers are packed is the project's; the
trials themselves only wait, as training is another test's subject.
"""

import logging
import os
import signal
import time
from types import SimpleNamespace

import pytest
import ray
from ray import tune
from ray.cluster_utils import Cluster

from cluster.capacity import Room, jobs_that_fit, present_nodes
from cluster.placement import Gang, fit
from pipelines.config import PublishStageConfig, ScreenStageConfig
from pipelines.search.stages.timed import timed_task
from pipelines.trials.run_trials import _List, _Queue

GANG = Gang(2, 1.0)  # one job fills one node
TRIALS = 8


def add_node(cluster, accelerator):
    return cluster.add_node(
        num_cpus=2,
        num_gpus=1,
        resources={f"accelerator_type:{accelerator}": 1},
        object_store_memory=80 * 2**20,
    )


@pytest.fixture
def nodes():
    """The cluster, and two nodes that hold one job each; drivers run on its head."""
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    # A node that is gone is known to be so after two seconds, not after twenty.
    head["_system_config"] = {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 3,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        first, second = add_node(cluster, "A100"), add_node(cluster, "H100")
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster, first, second
    finally:
        ray.shutdown()
        cluster.shutdown()


def waiting():
    """Made here it travels to the workers by value: they cannot import this file."""

    def wait(config):
        # Tune lets a trial go on only when it has dealt with its report.
        tune.report({"epoch": 1, "node": ray.get_runtime_context().get_node_id()})
        time.sleep(0.5)
        tune.report({"epoch": 2})

    return wait


class Job:
    """What a queue hands out."""

    def __init__(self, number):
        self.job_id = f"t{number}"

    def model_dump(self, mode):
        return {}


class Storm(tune.Callback):
    """A node dies under a trial, after two are over; another joins after two more."""

    def __init__(self, cluster, dying, queue):
        self.cluster, self.dying, self.queue = cluster, dying, queue
        self.hit, self.phase, self.due = None, "two", 0
        self.ended, self.restarted, self.failed = [], [], []
        self.running = {"two": 0, "one": 99, "two again": 0}

    def __getstate__(self):
        return {}

    def on_step_end(self, iteration, trials, **_):
        if self.phase == "two" and self.hit and len(present_nodes()) == 2:
            self.phase, self.due = "one", len(self.ended) + 2
        elif self.phase == "one" and len(self.ended) >= self.due:
            self.phase = "two again"
            add_node(self.cluster, "H100")
        running = len(self.queue._running)
        least = self.phase == "one"  # trials of the dead node are still among them at first
        best = min if least else max
        if running:
            self.running[self.phase] = best(self.running[self.phase], running)

    def on_trial_result(self, iteration, trials, trial, result, **_):
        here = result.get("node") == self.dying.node_id
        if here and self.hit is None and len(self.ended) >= 2:
            self.hit = trial.trial_id
            os.kill(result["pid"], signal.SIGKILL)  # Ray kills a node without its workers
            self.cluster.remove_node(self.dying, allow_graceful=False)

    def on_trial_recover(self, iteration, trials, trial, **_):
        self.restarted.append(trial.trial_id)

    def on_trial_error(self, iteration, trials, trial, **_):
        self.failed.append(trial.trial_id)

    def on_trial_complete(self, iteration, trials, trial, **_):
        self.ended.append(trial.trial_id)


def free():
    return {name: ray.available_resources().get(name, 0.0) for name in ("CPU", "GPU")}


def test_nodes_come_and_go_and_every_trial_ends(nodes, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "16")  # as `run_trials` does
    cluster, first, second = nodes
    placed = where_it_is_timed("H100")
    assert placed == second.node_id
    assert where_it_is_timed("A100") == first.node_id

    assert fit(present_nodes(), GANG).strategy == "STRICT_PACK"
    queue = _Queue(_List([Job(n) for n in range(TRIALS)]), Room(GANG, look_every=0.2), None)
    storm = Storm(cluster, second, queue)
    group = tune.PlacementGroupFactory([GANG.bundle()] * 2, strategy="STRICT_PACK")
    results = tune.Tuner(
        tune.with_resources(waiting(), group),
        # No actors are reused, as in `run_trials`, which says why.
        tune_config=tune.TuneConfig(search_alg=queue, num_samples=TRIALS),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path),
            callbacks=[storm],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=3),
        ),
    ).fit()
    assert storm.restarted == [storm.hit] and storm.failed == []
    assert len(storm.ended) == len(set(storm.ended)) == TRIALS
    assert [results[i].metrics["epoch"] for i in range(TRIALS)] == [2] * TRIALS
    assert [results[i].error for i in range(TRIALS)] == [None] * TRIALS
    assert storm.running == {"two": 2, "one": 1, "two again": 2}
    deadline = time.monotonic() + 60
    while free() != {"CPU": 4.0, "GPU": 2.0} and time.monotonic() < deadline:
        time.sleep(0.5)
    assert free() == {"CPU": 4.0, "GPU": 2.0}


def where_it_is_timed(accelerator):
    """The node that a measurement runs on where this type is declared."""
    config = SimpleNamespace(
        screen=ScreenStageConfig(cpus_per_actor=1.0, gpus_per_actor=0.5),
        publish=PublishStageConfig(accelerator=accelerator),
    )
    context = SimpleNamespace(
        config=config,
        cluster=SimpleNamespace(nodes=present_nodes),
        fits=lambda *gang: jobs_that_fit(present_nodes(), Gang(*gang)),
    )
    task, device, _ = timed_task(context, lambda: ray.get_runtime_context().get_node_id())
    assert device == "cuda"
    return ray.get(task.remote())
