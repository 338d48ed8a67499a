"""A whole search over two methods, from a checkpoint, within bounds of latency and parameters."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

import tokenpool as tp
from cluster.session import Cluster
from pipelines.commands.search_command import carry_out
from pipelines.config import SearchConfig
from pipelines.console import Screen
from pipelines.errors import UserError
from pipelines.search import runner
from pipelines.search.latency_table import LatencyTable
from pipelines.search.ledger import read_events
from pipelines.search.stages import bounds
from pipelines.search.state import load_state
from pipelines.storage.search_files import Search

METHODS = ("kmeans", "wkmedoids(start=matching)")


def config(place, digits, trained, num_workers=1, **space):
    train = {"epochs": 1, "batch_size": 64, "lr": 0.0005, "warmup_epochs": 0}
    workers = {"num_workers": 1, "cpus_per_worker": 0.9}
    many = workers | {"num_workers": num_workers}
    return SearchConfig.model_validate(
        {
            "name": "bounded",
            "storage": str(place / "runs"),
            "data": {"path": str(digits), "image_size": 32},
            "model": {"patch_size": 8, "depth": 3},
            "space": {
                "widths": [{"width": 32, "heads": 2, "checkpoint": str(trained)}],
                "method": METHODS,
                **space,
            },
            "base": {"workers": workers, "train": train},
            "calibrate": {"counts": 3, "images": 64},
            "screen": {"schedules": 16, "generations": 2, "cpus_per_actor": 0.9},
            "finals": {"trials": 2, "workers": many, "train": {**train, "epochs": 2}},
        }
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("bounded")


@pytest.mark.slow
def test_a_checkpoint_two_methods_and_bounds_make_a_front(place, digits, trained):
    wanted = config(place, digits, trained, max_latency_ms=1000.0, max_mparams=0.1)
    carry_out(wanted, Screen())
    state = load_state(Search(place / "runs", "bounded"))
    assert state.complete
    base = state.base(32)
    assert base.reports == [] and base.top1_minival > 0.3  # taken as it was, not trained
    assert tp.load(base.checkpoint).embed_dim == 32
    assert (
        {arm[1] for arm in state.calibrations}
        == set(METHODS)
        == {arm[1] for arm in state.latency_tables}
    )
    assert {row.candidate.method for row in state.screened} == set(METHODS)
    for row in state.screened:
        spec = tp.vit_spec(tp.load(base.checkpoint))
        found = row.candidate
        assert found.gmacs == pytest.approx(tp.vit_macs(spec, found.schedule, found.method).gmacs)
    done = [trial for trial in state.trials.values() if trial.status == "done"]
    assert done
    for trial in done:
        model = tp.load(trial.checkpoint)
        said = tp.pooling_of(model).method_text
        assert said == trial.method and tuple(tp.pooling_of(model).schedule) == trial.schedule


@pytest.fixture
def two_cpus(monkeypatch):
    """A cluster that is not there, where blocks take a millisecond each.

    What is refused before anything runs is refused without it; the timing itself, through Ray and
    without, is for test_latency_table.py and tests/e2e.
    """

    def measured(spec, patch_size, method, counts, **_):
        return LatencyTable(tuple(counts), ((1.0,) * len(counts),) * len(counts), rest=1.0)

    cluster = Cluster("here", cpus=2.0, gpus=0.0, num_nodes=1)
    monkeypatch.setattr(runner, "ray_session", lambda *_: nullcontext(cluster))
    monkeypatch.setattr(bounds, "ray", SimpleNamespace(get=lambda value: value))
    timing = SimpleNamespace(remote=measured)
    monkeypatch.setattr(bounds, "timed_task", lambda *_: (timing, "cpu", 1))


def search(config):
    """As the command does it, without MLflow and results."""
    follower = nullcontext(SimpleNamespace(notify=lambda: None))
    runner.run_search(config, Screen(), follow=lambda: follower, write=lambda *_: None)


def test_more_workers_than_the_cluster_has_are_said_before_anything_runs(
    place, digits, trained, two_cpus
):
    many = config(place / "many", digits, trained, num_workers=32)
    with pytest.raises(UserError, match=r"32 workers .*2 CPUs") as caught:
        search(many)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    # Nothing is begun under the name, so that it may be used with a config that fits.
    assert not list(read_events(many.search.ledger))
    with pytest.raises(UserError, match="no search named bounded"):
        load_state(many.search)


def test_bounds_that_nothing_meets_are_said_before_anything_is_trained(
    place, digits, trained, two_cpus
):
    for space, message in [
        ({"max_mparams": 0.001}, "no schedule keeps mparams within 0.001"),
        ({"max_gmacs": 1e-9}, "no schedule costs"),
    ]:
        with pytest.raises(UserError, match=message):
            search(config(place / "none", digits, trained, **space))
        assert not (place / "none").exists()
    with pytest.raises(UserError, match="no schedule keeps latency_ms within 1e-06"):
        search(config(place / "late", digits, trained, max_latency_ms=1e-6))
    events = read_events(Search(place / "late/runs", "bounded").ledger)
    recorded = {event["event"] for event in events}
    assert "latency_table" in recorded
    assert not recorded & {"base_report", "base_done", "screened", "trial_created"}


def test_bad_names_are_one_line(place, digits, trained):
    with pytest.raises(UserError, match="no pooling method"):
        carry_out(config(place / "bad", digits, trained, method=["kmeans", "kmeens"]), Screen())
    with pytest.raises(ValidationError, match="listed twice"):
        config(place, digits, trained, method=["kmeans", "kmeans"])
