"""ParetoHalving: its bookkeeping, its speed, and a real Tune experiment."""

import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import tune

from cluster.session import ray_session
from tune_spaces.scheduler import Decision, ParetoHalving, geometric_rungs


def make(**options: Any) -> ParetoHalving:
    return ParetoHalving("top1", ["gmacs"], **({"rungs": [1, 3]} | options))


def feed(scheduler: ParetoHalving, trial_id: str, gmacs: float, epoch: int, top1: float) -> bool:
    """Reports once; whether the trial goes on."""
    verdict = scheduler.report(trial_id, {"gmacs": gmacs}, {"epoch": epoch, "top1": top1})
    return verdict is None or verdict.kept


def test_trials_are_judged_once_per_rung() -> None:
    scheduler = make()
    assert feed(scheduler, "a", 1.0, 1, 0.8)
    assert not feed(scheduler, "b", 2.0, 1, 0.7)
    # Not at a rung: nothing is decided, however bad.
    assert feed(scheduler, "a", 1.0, 2, 0.0)
    assert feed(scheduler, "a", 1.0, 3, 0.9)
    assert [(d.trial_id, d.rung, d.verdict.kept) for d in scheduler.decisions] == [
        ("a", 1, True),
        ("b", 1, False),
        ("a", 3, True),
    ]


def test_a_trial_that_skips_a_rung_is_judged_at_the_one_it_reached() -> None:
    scheduler = make()
    feed(scheduler, "a", 1.0, 4, 0.8)
    assert list(scheduler.rungs[1]) == []
    assert list(scheduler.rungs[3]) == ["a"]


def test_a_restarted_trial_gets_the_same_verdict_again() -> None:
    scheduler = make()
    feed(scheduler, "a", 1.0, 1, 0.8)
    feed(scheduler, "b", 2.0, 1, 0.7)
    assert not feed(scheduler, "b", 2.0, 1, 0.99)
    assert feed(scheduler, "a", 1.0, 1, 0.0)
    assert len(scheduler.decisions) == 2


def test_several_metrics_costs_and_nested_names() -> None:
    scheduler = ParetoHalving(
        {"eval/top1": "max", "eval/loss": "min"},
        ["model/gmacs", "latency_ms"],
        rungs=[1],
        noise={"eval/loss": 0.1},
    )

    def report(name: str, gmacs: float, top1: float, loss: float, latency: float) -> bool:
        result = {"epoch": 1, "eval": {"top1": top1, "loss": loss}, "latency_ms": latency}
        verdict = scheduler.report(name, {"model": {"gmacs": gmacs}}, result)
        return verdict is None or verdict.kept

    assert report("a", 1.0, 0.8, 1.0, latency=5.0)
    # Beaten in everything, but on loss by no more than the noise.
    assert report("b", 2.0, 0.7, 1.05, latency=6.0)
    # Beaten in everything by more than the noise.
    assert not report("c", 3.0, 0.6, 2.0, latency=9.0)
    # Fewest milliseconds of all: nothing to be compared with at that cost.
    assert report("d", 3.0, 0.6, 2.0, latency=1.0)


def test_reports_without_the_metric_decide_nothing() -> None:
    scheduler = make()
    assert scheduler.report("a", {"gmacs": 1.0}, {"epoch": 1}) is None
    assert scheduler.report("a", {"gmacs": 1.0}, {"top1": 0.3}) is None


def test_a_missing_cost_is_named() -> None:
    with pytest.raises(ValueError, match=r"'gmacs' is neither .* the config has lr"):
        make().report("a", {"lr": 0.1}, {"epoch": 1, "top1": 0.3})


def test_the_state_file_outlives_the_driver_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "state" / "rungs.jsonl"
    scheduler = make(state_path=path)
    feed(scheduler, "a", 1.0, 1, 0.8)
    feed(scheduler, "b", 2.0, 1, 0.7)
    with path.open("a") as file:
        file.write('[1, "torn", [1')
    revived = make(state_path=path)
    assert not feed(revived, "c", 2.0, 1, 0.65)
    again = make(state_path=path)
    assert not feed(again, "b", 2.0, 1, 0.9)
    assert again.rungs[1].keys() == {"a", "b", "c"}
    assert again.rungs == revived.rungs


def test_replay_restores_what_reports_told() -> None:
    original, rebuilt = make(), make()
    feed(original, "a", 1.0, 1, 0.8)
    feed(original, "a", 1.0, 3, 0.9)
    feed(original, "b", 2.0, 1, 0.7)
    reports = [{"epoch": e, "top1": t} for e, t in ((1, 0.8), (2, 0.85), (3, 0.9))]
    rebuilt.replay("a", {"gmacs": 1.0}, reports)
    rebuilt.replay("b", {"gmacs": 2.0}, [{"epoch": 1, "top1": 0.7}], stopped=True)
    assert rebuilt.rungs == original.rungs


def test_save_restore_and_pickle(tmp_path: Path) -> None:
    seen: list[Decision] = []
    scheduler = make(listener=seen.append)
    feed(scheduler, "a", 1.0, 1, 0.8)
    scheduler.save(str(tmp_path / "scheduler.pkl"))
    restored = make()
    restored.restore(str(tmp_path / "scheduler.pkl"))
    copied = pickle.loads(pickle.dumps(scheduler))
    for revived in (restored, copied):
        assert revived.rungs == scheduler.rungs
        assert not feed(revived, "b", 2.0, 1, 0.7)
    assert [d.trial_id for d in seen] == ["a"]
    assert "1: 1 of 1 kept, 3: 0 of 0 kept" in scheduler.debug_string()


def test_geometric_rungs() -> None:
    assert geometric_rungs(1, 10, 2.0) == [1, 2, 4, 8]
    assert geometric_rungs(3, 28, 3.0) == [3, 9, 27]
    with pytest.raises(ValueError, match="grace_period"):
        geometric_rungs(10, 10, 2.0)


@pytest.mark.parametrize(
    "options",
    [{"reduction_factor": 1}, {"noise": {"top5": 0.1}}, {"rungs": [0, 2]}],
)
def test_senseless_arguments_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"reduction_factor|top5|rungs"):
        make(**options)


def test_a_decision_takes_under_20_ms_at_a_thousand_trials() -> None:
    rng = np.random.default_rng(0)
    scheduler = make(rungs=[1])
    # On the front, the slow case: nobody is beaten, and all must be compared for spread.
    for number, gmacs in enumerate(rng.random(1000)):
        scheduler.replay(str(number), {"gmacs": gmacs}, [{"epoch": 1, "top1": gmacs}])
    seconds = []
    for number, gmacs in enumerate(rng.random(30), start=1000):
        start = time.perf_counter()
        feed(scheduler, str(number), gmacs, 1, gmacs)
        seconds.append(time.perf_counter() - start)
    assert np.median(seconds) < 0.020


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    with ray_session(num_cpus=2):
        yield


@pytest.mark.usefixtures("_ray")
def test_a_tune_experiment_is_stopped_early_where_it_is_beaten(tmp_path: Path) -> None:
    # One after the other: b is beaten at its own cost; c is worse than a but cheaper than all.
    top1_of = {1.0: 0.8, 2.0: 0.7, 0.5: 0.3, 3.0: 0.9}

    def train(config: dict[str, Any]) -> None:
        for epoch in range(1, 5):
            tune.report({"epoch": epoch, "top1": config["final"] * epoch / 4})

    space = tune.grid_search([{"gmacs": g, "final": t} for g, t in top1_of.items()])
    scheduler = ParetoHalving("top1", ["point/gmacs"], rungs=[2], state_path=tmp_path / "rungs")
    results = tune.Tuner(
        tune.with_resources(lambda config: train(config["point"]), {"cpu": 1}),
        param_space={"point": space},
        tune_config=tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    ).fit()
    last_epoch = {r.config["point"]["gmacs"]: r.metrics["epoch"] for r in results}
    assert last_epoch == {1.0: 4, 2.0: 2, 0.5: 4, 3.0: 4}
    assert len((tmp_path / "rungs").read_text().splitlines()) == 4
