"""The search bench without training, on a small model, and the measure of orderings."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.search.ordering import tau
from benchmarks.search.untrained import CONTENDERS, OURS, RealConfig, RealWorld, found_by
from benchmarks.search.untrained_report import bench_real


@pytest.fixture(scope="module")
def config(digits, trained):
    return RealConfig(
        data=digits, model=trained, image_size=32, images=96, judged_on=64,
        costs=(0.4, 0.6, 0.8), schedules=40, generations=4, planned=6, calibrate_counts=3,
        calibrate_images=16, seeds=2,
    )  # fmt: skip


def test_all_find_within_the_costs_and_only_ours_sets_the_budget(config, tmp_path):
    result, files = bench_real(
        config, cache=tmp_path, out=tmp_path / "out", device="cpu", names=list(CONTENDERS),
        say=lambda text: None,
    )  # fmt: skip
    assert json.loads(files[0].read_text()) == json.loads(json.dumps(result))
    assert "| ours" in files[1].read_text() and files[2].stat().st_size > 1000
    mine = result["contenders"][OURS]
    for entry in result["contenders"].values():
        for run, own in zip(entry["runs"], mine["runs"], strict=True):
            assert run["gmacs_spent"] <= own["gmacs_spent"] * 1.1
    # More cost, less divergence on the pictures that schedules are chosen on.
    for run in mine["runs"]:
        chosen = [value for value in run["chosen_by"] if value is not None]
        assert chosen == sorted(chosen, reverse=True)
    assert [ratio is not None for ratio in result["contenders"]["constant rate"]["ours_to_it"]]
    again, _ = bench_real(
        config, cache=tmp_path, out=tmp_path / "again", device="cpu", names=[OURS],
        say=lambda text: None,
    )  # fmt: skip
    assert again["contenders"][OURS]["runs"] == mine["runs"]


def test_what_begins_alike_is_charged_once(config, tmp_path):
    world = RealWorld(config, tmp_path, "cpu", lambda text: None)
    dense = (world.space.patches,) * world.space.depth
    world.charge([dense], 1)
    one = world.macs
    world.charge([dense, dense], 1)
    assert world.macs == pytest.approx(2 * one)
    points, macs = found_by(world, "constant rate", 0, budget=one)
    assert len(points) <= 3 and macs > 0


def test_tau_counts_pairs_of_nearly_one_cost():
    rng = np.random.default_rng(0)
    truths = rng.normal(size=40)
    costs = [1.0] * 20 + [2.0] * 20
    assert tau(-truths, truths, costs) == (1.0, 2 * 190)
    assert tau(truths, truths, costs) == (-1.0, 2 * 190)
    # What tells only which cost is which tells nothing.
    assert abs(tau(rng.normal(size=40) - np.array(costs) * 9, truths, costs)[0]) < 0.35
