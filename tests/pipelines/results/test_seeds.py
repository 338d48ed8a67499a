"""Several seeds of a schedule are one point: its mean, its spread, its runs in MLflow."""

import io
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import ledgers
import pytest
from mlflow import MlflowClient
from rich.console import Console

import tokenpool as tp
from pipelines.data.manifest import Manifest
from pipelines.export.model_card import model_card
from pipelines.results.explain import explain
from pipelines.results.front import Front, build_front
from pipelines.results.page import page_data, summary
from pipelines.results.plot import front_figure
from pipelines.results.points import vit_params
from pipelines.results.table import front_table
from pipelines.search.state import SearchState, fold
from pipelines.tracking.front_artifacts import description
from pipelines.tracking.mirror import LedgerMirror
from pipelines.tracking.tracking_store import tracking_store

TOPS = [0.965, *ledgers.SEEDS.values()]
# (0.965 + 0.960 + 0.976) / 3; deviations -0.002, -0.007, 0.009 give sqrt(0.000134 / 2).
MEAN, SPREAD = 0.967, 0.0081853


@pytest.fixture
def state() -> SearchState:
    return fold("digits", ledgers.events_with_seeds())


@pytest.fixture
def front(state: SearchState) -> Front:
    return build_front(state)


def test_mean_and_spread_by_hand(front: Front) -> None:
    point = front.point("t001")
    assert point is not None
    assert point.top1_minival == pytest.approx(MEAN)
    assert point.minival_spread == pytest.approx(SPREAD, abs=1e-6)
    assert point.num_seeds == 3
    # Two of three were validated.
    assert point.top1_val == pytest.approx((0.961 + 0.955) / 2)
    assert point.val_spread == pytest.approx(statistics.stdev([0.961, 0.955]))
    assert [p.point_id for p in front.points].count("t001") == 1
    assert "t001-s1" not in {p.point_id for p in front.points}
    row = point.as_dict()
    assert (row["seeds"], row["top1_minival_std"]) == (3, point.minival_spread)
    other = front.point("t002")
    assert other is not None
    assert (other.num_seeds, other.minival_spread) == (1, None)


def test_a_further_seed_never_lowers_the_hypervolume(state: SearchState) -> None:
    plain = build_front(fold("digits", ledgers.events())).hypervolume
    constant = state.trials["c000"]
    assert constant.top1_minival is not None and constant.top1_minival < 0.965
    # t001's mean is above its first seed here; then its further seeds are worse than the first.
    assert build_front(state).hypervolume == pytest.approx(plain)
    for name in ledgers.SEEDS:
        state.trials[name].top1_minival = 0.5
    assert build_front(state).hypervolume == pytest.approx(plain)
    point = build_front(state).point("t001")
    assert point is not None and point.top1_minival == pytest.approx((0.965 + 0.5 + 0.5) / 3)


def test_one_seed_can_be_asked_for(front: Front, state: SearchState) -> None:
    one = front.point("t001-s2")
    assert one is not None
    assert (one.point_id, one.top1_minival, one.checkpoint) == (
        "t001-s2",
        0.976,
        "/nowhere/t001-s2",
    )
    assert "mean of 3 seeds, 96.70±0.82 %" in explain(state, "t001")
    assert "top-1 97.60 % on minival" in explain(state, "t001-s2")


def test_the_model_card_is_of_the_weights_it_lies_beside(front: Front) -> None:
    splits = {"minival": SimpleNamespace(samples=100), "val": SimpleNamespace(samples=400)}
    manifest = SimpleNamespace(splits=splits, source="digits", classes=["0", "1"])
    facts = {
        "search": "digits",
        "format": "timm",
        "config_hash": "x",
        "preprocessing": {"image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3},
        "check": {
            "images": 64,
            "within_tolerance": 64,
            "ties": 0,
            "largest_logit_difference": 0.0,
            "same_top1": True,
        },
        "speed": {"hardware": "x", "threads": 1, "batches": []},
    }
    point = front.point("t001")
    assert point is not None
    card = model_card(point, facts, cast(Manifest, manifest))
    assert "| top-1 on minival | 96.50 ± 1.84 % of 100 images |" in card
    assert "| over 3 seeds | minival 96.70±0.82 %, validation 95.80±0.42 %" in card


def test_a_seed_that_failed_counts_for_nothing(state: SearchState) -> None:
    state.trials["t001-s2"].status = "failed"
    point = build_front(state).point("t001")
    assert point is not None
    assert (point.num_seeds, point.status) == (2, "done")
    assert point.top1_minival == pytest.approx((0.965 + 0.960) / 2)
    state.trials["t001"].status = "failed"
    point = build_front(state).point("t001")
    assert point is not None
    assert (point.checkpoint, point.minival_spread) == ("/nowhere/t001-s1", None)


def test_a_constant_keep_rate_is_a_baseline(front: Front) -> None:
    baseline = front.point("c000")
    assert baseline is not None
    assert (baseline.kind, baseline.keep_rate) == ("constant", 0.8)
    assert baseline.schedule == tuple(tp.Schedule.constant_rate(6, 64, 0.8))
    labels = front_figure(front).legends[0].get_texts()
    assert "constant keep-rate" in {label.get_text() for label in labels}


def test_the_summary_compares_with_the_best_constant_keep_rate(
    front: Front, state: SearchState
) -> None:
    assert (
        "The best constant keep-rate, 0.8 at width 96, has 95.00 % at 0.031 GMACs; "
        "t001 has 96.70 % at 0.03." in summary(front)
    )
    trial = state.trials["c000"]
    trial.candidate = replace(trial.candidate, gmacs=0.001)
    assert "no searched model costs as little" in summary(build_front(state))


def test_table_description_and_page_show_the_spread(front: Front) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(front_table(front, front.points))
    text = " ".join(console.export_text().split())
    assert "96.70±0.82" in text
    assert "± one standard deviation over seeds" in text
    assert "51 41 33 26 21 17 (keep rate 0.8)" in text
    assert "ms b1" in text
    narrow = Console(width=80, record=True, file=io.StringIO())
    narrow.print(front_table(front, front.points, width=80))
    text = narrow.export_text()
    for whole in ("★ knee", "dense-96", "96.70±0.82", "95.80±0.42", "0.031", "48 40 32 24"):
        assert whole in text
    assert "…" not in text
    assert "| 96.70±0.82 | 95.80±0.42 |" in description(front)
    data = page_data(front, {"minival": 100, "val": 100})
    points = {point["id"]: point for point in data["points"]}
    assert points["t001"]["minival_error"] == pytest.approx(SPREAD, abs=1e-6)
    assert points["t001"]["seeds"] == 3
    # One seed: the error over 100 images, sqrt(0.955 * 0.045 / 100).
    assert points["t002"]["minival_error"] == pytest.approx(0.02073, abs=1e-5)
    assert points["c000"]["keep_rate"] == 0.8
    assert "one standard deviation over seeds (up to 3)" in data["note"]
    assert list(data["costs"]) == ["gmacs", "params", "latency_1"]


def test_mlflow_has_mean_and_spread_on_every_seed(folder: Path) -> None:
    search = ledgers.write_ledger(folder, "digits", ledgers.events_with_seeds())
    mirror = LedgerMirror(search, tracking_store(folder))
    mirror.read()
    mirror.send(with_artifacts=False)
    client = MlflowClient(tracking_uri=tracking_store(folder).uri)
    for name in ("t001", *ledgers.SEEDS):
        run = client.get_run(mirror.run_id(name))
        assert run.data.metrics["top1_minival_mean"] == pytest.approx(MEAN)
        assert run.data.metrics["top1_minival_std"] == pytest.approx(SPREAD, abs=1e-6)
        assert run.data.tags["pareto"] == "true"
        assert run.data.params.get("seed") == (name[-1] if "-s" in name else None)
    baseline = client.get_run(mirror.run_id("c000"))
    assert baseline.data.tags["tokenpool.kind"] == "constant"
    assert baseline.data.tags["keep_rate"] == "0.8"
    assert baseline.data.tags["pareto"] == "false"
    assert client.get_run(mirror.run_id("dense-64")).data.metrics["latency_ms_b1"] == 2.0


def test_parameters_are_those_of_the_model() -> None:
    for width, heads, depth, patch, size, classes in ((96, 3, 6, 4, 32, 10), (64, 2, 3, 8, 32, 5)):
        model = tp.build_vit(size, patch, width, depth, heads, classes)
        expected = sum(parameter.numel() for parameter in model.parameters())
        assert vit_params(width, depth, patch, (size // patch) ** 2, classes) == expected
