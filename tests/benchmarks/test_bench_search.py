"""`tokenpool bench search`: its arithmetic by hand, and a whole bench on a tiny world."""

import json
import math

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

from benchmarks.pictures import Pictures
from benchmarks.search.cache import Cache
from benchmarks.search.config import BenchConfig
from benchmarks.search.report import (
    Box,
    curve,
    front,
    heights,
    savings,
    significant,
    table,
)
from benchmarks.search.run import CONTENDERS, OURS, RANDOM, run
from benchmarks.search.steps import Point, Step
from benchmarks.search.world import World
from pipelines.commands.bench_search_command import bench_search
from pipelines.config_file import load_as
from pipelines.errors import UserError

TINY = {
    "name": "tiny",
    "model": {"patch_size": 8, "depth": 3},
    "widths": [{"width": 16, "heads": 1}, {"width": 32, "heads": 2}],
    "base": {"epochs": 4, "batch_size": 64, "lr": 0.002, "warmup_epochs": 0.5},
    "finetune": {"epochs": 2, "batch_size": 32, "lr": 0.0005, "warmup_epochs": 0},
    "finetune_images": 64,
    "top1_floor": 0.1,
    "seeds": 2,
    "evaluations": 6,
    "rates": [0.5, 0.8],
    "halving": {"grace_epochs": 1, "reduction_factor": 2},
    "powerbert": {"penalties": [0.01], "steps": 2},
    "ours": {
        "calibrate_counts": 3,
        "calibrate_images": 32,
        "planned": 6,
        "bins": 3,
        "images": 64,
        "schedules": 10,
        "trials": 6,
        "rounds": 2,
    },
}
BASE = Point(8, (4, 4), 1.0, 0.6)
BOX = Box(gmacs=1.0, floor=0.5, bases=(BASE,))


@pytest.fixture(scope="module")
def config(digits, tmp_path_factory):
    data = {"path": str(digits), "image_size": 32, "loader": "torchvision"}
    path = tmp_path_factory.mktemp("bench") / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "data": data}))
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One for all tests: the bases are trained once."""
    return tmp_path_factory.mktemp("cache")


def make_world(config, cache, overrides=()):
    return World(load_as(BenchConfig, config, list(overrides)), cache, "cpu", lambda _: None)


def trained(seconds, gmacs, top1):
    return Step(seconds, "finetune", Point(8, (4, 2), gmacs, top1, 1))


# ------------------------------------------------------------------ arithmetic


def test_hypervolume_grows_as_worked_out_by_hand():
    steps = [Step(2, "screen"), trained(3, 0.5, 0.9), trained(1, 0.75, 0.8), trained(4, 0.25, 0.7)]
    found = curve(BOX, steps)
    # The base lies on the box's edge and dominates nothing. (0.5, 0.9): half × 0.4 of 0.5.
    assert found.seconds.tolist() == [0, 5, 6, 10, 10]
    assert found.hypervolume.tolist() == pytest.approx([0, 0.4, 0.4, 0.5, 0.5])
    assert found.at(4.9) == 0 and found.at(5) == pytest.approx(0.4)
    assert found.time_to(0.4) == 5 and found.time_to(0.45) == 10 and found.time_to(0.51) is None
    # The base is beaten by a cheaper and better one, as (0.75, 0.8) is.
    assert [point.gmacs for point in front(BOX, steps)] == [0.25, 0.5]
    costs = np.array([0.1, 0.25, 0.4, 0.5, 1.0])
    assert heights(BOX, front(BOX, steps), costs).tolist() == [0.5, 0.7, 0.7, 0.9, 0.9]


def test_on_a_log_axis_half_the_cost_counts_alike_everywhere():
    box = Box(gmacs=1.0, floor=0.5, bases=(BASE,), cheapest=1 / 16)
    # From a 16th to 1 there are four halvings; each is a quarter of the box.
    assert curve(box, [trained(1, 0.5, 0.75)]).hypervolume[-1] == pytest.approx(0.25 * 0.5)
    assert curve(box, [trained(1, 0.125, 0.75)]).hypervolume[-1] == pytest.approx(0.75 * 0.5)
    assert curve(box, [trained(1, 1 / 16, 1.0)]).hypervolume[-1] == pytest.approx(1.0)


def test_a_peer_above_ours_is_said_to_be_so_and_one_within_the_noise_is_not():
    ours = {seed: [trained(10, 0.5, 0.8 + 0.001 * seed)] for seed in range(3)}
    better = {seed: [trained(10, 0.4, 0.9)] for seed in range(3)}
    noisy = {seed: [trained(10, 0.5, (0.7, 0.8, 1.0)[seed])] for seed in range(3)}
    rows = {row.name: row for row in table(BOX, {OURS: ours, RANDOM: better, "noisy": noisy})}
    assert rows[RANDOM].excess_top1 == pytest.approx(0.9 - 0.6, abs=0.11)
    assert rows[RANDOM].excess_at is not None and rows[RANDOM].excess_seconds > 0
    assert rows["noisy"].excess_at is None and rows["noisy"].excess_seconds == 0
    assert rows[OURS].time_to_random == [None] * 3
    assert rows[RANDOM].share_of_random == [1.0] * 3


def test_a_difference_counts_where_zero_is_outside_its_confidence_interval():
    differences = np.array([[0.1, 0.1, -0.1], [0.1, -0.1, -0.1], [0.1, 0.2, -0.1]])
    assert significant(differences).tolist() == pytest.approx([0.1, 0, 0])
    # Student's t of 2 and of 4 degrees of freedom at 97.5 %, from a table: 4.303 and 2.776.
    for seeds, errors in ((3, 4.303), (5, 2.776)):
        spread = np.linspace(-1, 1, seeds)
        error = spread.std(ddof=1) / math.sqrt(seeds)
        above, below = spread + 1.001 * errors * error, spread + 0.999 * errors * error
        found = significant(np.stack([above, below], axis=1))
        assert found.tolist() == pytest.approx([1.001 * errors * error, 0])
    assert significant(np.array([[0.2, -0.2]])).tolist() == [0.2, 0]


def test_savings_are_counted_at_matched_accuracy():
    (saving,) = savings(
        {16: (0.5, [0.8, 0.9])}, [[(0.1, 0.7), (0.2, 0.85), (0.4, 0.8)], [(0.1, 0.7)]]
    )
    assert saving.gmacs_front == [0.2, None]
    assert saving.saved == [pytest.approx(0.6), None]


def test_an_answer_cut_short_by_a_kill_is_asked_again(tmp_path):
    path = tmp_path / "x" / "answers.jsonl"
    first = Cache(path)
    first.put([1, 2.5], "score", 8, (4, 2))
    first.put(3, "other")
    path.write_bytes(path.read_bytes()[:-4])
    again = Cache(path)
    assert again.get("score", 8, [4, 2]) == [1, 2.5] and again.get("other") is None
    assert again.once(lambda: 4, "other") == 4
    assert Cache(path).get("other") == 4


# --------------------------------------------------------------- a whole bench


def test_contenders_stay_in_the_space_and_in_the_budget(config, cache):
    world = make_world(config, cache)
    traces = run(world, lambda _: None, seeds=1)
    assert list(traces) == list(CONTENDERS)
    budget = sum(step.seconds for step in traces[RANDOM][0])
    for name, runs in traces.items():
        (steps,) = runs.values()
        points = [step.point for step in steps if step.point is not None]
        assert points, name
        assert sum(step.seconds for step in steps) <= budget * (1 + 1e-9)
        assert all(step.seconds > 0 for step in steps)
        for point in points:
            candidate = world.space.candidate(point.width, point.schedule)
            assert candidate.gmacs == pytest.approx(point.gmacs)
    assert len(traces[RANDOM][0]) == 6
    kinds = {step.kind for step in traces[OURS][0]}
    assert kinds == {"calibrate", "screen", "finetune"}


def test_an_evaluation_is_the_same_for_all_and_is_charged_again(config, cache, monkeypatch):
    world = make_world(config, cache)
    (candidate,) = world.space.sample(np.random.default_rng(5))
    whole = world.evaluate(candidate, 0)
    monkeypatch.setattr(Pictures, "train", lambda *_: pytest.fail("trained what was known already"))
    again = make_world(config, cache)
    run_ = again.finetune(candidate, 0)
    assert run_.run_to(2) == whole and whole.seconds > 0


def test_a_training_that_is_stopped_at_a_rung_goes_on_where_it_was(config, cache, tmp_path):
    world = make_world(config, cache)
    (candidate,) = world.space.sample(np.random.default_rng(6))
    halves = world.finetune(candidate, 1)
    first, second = halves.run_to(1), halves.run_to(2)
    assert first.point.epoch == 1 and second.point.epoch == 2
    # Another process, after a kill between the rungs, with the bases of this one.
    other = make_world(config, tmp_path)
    for width in world.space.widths:
        other._bases[width] = world.base(width)
    assert other.evaluate(candidate, 1).point.top1 == second.point.top1


def test_seeds_differ_and_repeat(config, cache):
    world = make_world(config, cache)
    traces = run(world, lambda _: None, names=["Optuna NSGA-II", "Optuna TPE"], seeds=2)
    for runs in traces.values():
        first, second = ([s.point.schedule for s in runs[seed]] for seed in (0, 1))
        assert first != second
    again = run(make_world(config, cache), lambda _: None, names=["Optuna TPE"], seeds=2)
    for name, runs in again.items():
        assert runs == traces[name]


def test_the_command_writes_a_table_a_picture_and_all_figures(config, cache, tmp_path):
    app = typer.Typer()
    app.command()(bench_search)
    words = [config, "--cache", cache, "--out", tmp_path, "--json"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)
    assert {row["name"] for row in found["contenders"]} == set(CONTENDERS)
    assert json.loads((tmp_path / "search-tiny.json").read_text())["claims"] == found["claims"]
    text = (tmp_path / "search-tiny.md").read_text()
    assert all(name in text for name in CONTENDERS) and "42%" in text
    assert (tmp_path / "search-tiny.png").stat().st_size > 10_000
    # Hypervolume never falls, and the table's figure is the trace's last.
    for row in found["contenders"]:
        for seed, final in enumerate(row["hypervolume"]):
            volumes = found["traces"][row["name"]][str(seed)]["hypervolume"]
            assert volumes == sorted(volumes)
            assert volumes[-1] == pytest.approx(final, abs=1e-5)
    (saving,) = found["savings"]
    assert saving["width"] == 16 and len(saving["top1_val"]) == 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.patch_size=7"], "not a multiple of model.patch_size 7"),
        (["halving.grace_epochs=2"], "leaves nothing to save"),
        (["evaluation=3"], "did you mean evaluations"),
    ],
)
def test_a_bad_setting_is_named(config, overrides, said):
    with pytest.raises(UserError, match=said):
        load_as(BenchConfig, config, overrides)


@pytest.mark.parametrize("name", ["digits", "glyphs", "glyphs-large"])
def test_presets_load(name):
    from importlib.resources import files

    load_as(BenchConfig, files("tune_spaces") / "presets" / f"bench-{name}.yaml")


def test_a_contender_that_does_not_exist_is_named(config, cache, tmp_path):
    from benchmarks.search.comparison import bench

    loaded = load_as(BenchConfig, config)
    with pytest.raises(UserError, match="no contender 'hyperband'"):
        bench(
            loaded, cache=cache, out=tmp_path, device="cpu", names=["hyperband"], say=lambda _: None
        )
