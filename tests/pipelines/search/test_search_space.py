"""`tokenpool plan`: figures by hand, nothing started, nothing written."""

import json
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.commands.plan_command import size
from pipelines.config import SearchConfig
from pipelines.data.manifest import Manifest
from pipelines.data.prepare import prepare
from pipelines.errors import UserError
from pipelines.search.estimate import _SCORER_START, _SLOWER, _START, estimate
from pipelines.search.probe import Probe, Rates, seconds_per_image

CONFIG = {
    "name": "s",
    "data": {"path": "data", "image_size": 32},
    "model": {"patch_size": 8, "depth": 2},
    "space": {"widths": [{"width": 16, "heads": 2}, {"width": 32, "heads": 2}]},
    "base": {
        "train": {"epochs": 4, "batch_size": 8, "warmup_epochs": 0.5},
        "workers": {"num_workers": 2},
        "max_concurrent": 2,
    },
    "calibrate": {"enabled": False},
    "screen": {"schedules": 50, "actors": 4, "racing": True},
    "finals": {
        "trials": 8,
        "grace_epochs": 1,
        "seeds": 2,
        "constant_rates": [0.5],
        "train": {"epochs": 4, "batch_size": 8, "warmup_epochs": 0.5},
    },
}


def config(**changes):
    values = json.loads(json.dumps(CONFIG))
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        node = values
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return SearchConfig.model_validate(values)


def manifest():
    split = {"file": "x.beton", "sha256": "0" * 64, "size_bytes": 1000, "counts": [1, 1]}
    return Manifest(
        source="digits",
        seed=0,
        classes=["a", "b"],
        image_size=32,
        max_width=32,
        max_height=32,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        splits={
            name: {**split, "samples": samples}
            for name, samples in (("train", 800), ("minival", 100), ("val", 200))
        },
    )


def rates(step=0.01, score=0.001):
    return Rates((step, step), (step, step), (score, score), (score, score))


FOUND = Probe("cpu", 1.0, {16: rates(), 32: rates(0.03)}, 0.0)


def stage(found, name):
    return next(stage for stage in found.stages if stage.name == name)


def test_every_stage_by_hand():
    found = estimate(config(), manifest(), FOUND, lambda *_: 2)
    assert [s.name for s in found.stages] == ["base", "screen", "finals", "publish"]
    base = stage(found, "base")
    # Four epochs of 800 steps' images and 100 scored, for both widths, and two workers' starts.
    exact = 4 * (800 * 0.01 + 100 * 0.001) + 4 * (800 * 0.03 + 100 * 0.001)
    assert base.device_seconds[0] == pytest.approx(exact + 2 * 2 * _START[0])
    slow = exact + (_SLOWER - 1) * 4 * 800 * 0.04 + 2 * 2 * _START[1]
    assert base.device_seconds[1] == pytest.approx(slow)
    assert base.seconds[0] == pytest.approx(base.device_seconds[0] / 4)
    screen = stage(found, "screen")
    # Two of four actors fit; racing saves half of the passes at best.
    assert screen.device_seconds == pytest.approx(
        (50 * 100 * 0.001 / 2 + 2 * _SCORER_START[0], 50 * 100 * 0.001 * _SLOWER + 50)
    )
    assert screen.seconds[0] == pytest.approx(screen.device_seconds[0] / 2)
    finals = stage(found, "finals")
    # One further seed at least and 8 at most, and a constant keep-rate, twice, for each width.
    assert found.trials == finals.jobs == (8 + 1 + 2 * 2, 16 + 2 * 2)
    # Eight finals come to the rung, one of them and the five others to the end of 4 epochs.
    epochs = 8 * 1 + 3 + 5 * 4
    one = 800 * 0.02 + 100 * 0.001
    assert finals.device_seconds[0] == pytest.approx(epochs * one + 13 * _START[0])
    full = 20 * (4 * (800 * 0.02 * _SLOWER + 100 * 0.001) + _START[1])
    assert finals.device_seconds[1] == pytest.approx(full)
    assert found.device_seconds[1] == pytest.approx(sum(s.device_seconds[1] for s in found.stages))
    assert found.beton_bytes == 3000


def test_without_a_probe_there_are_counts_and_bytes_alone():
    found = estimate(config(), manifest(), None, lambda *_: 0)
    assert found.device_seconds is None and found.seconds is None
    assert found.trials == (13, 20)
    low, high = found.checkpoint_bytes
    assert 0 < low < high


def test_checkpoints_take_what_is_kept_of_every_job():
    one = estimate(
        config(
            space__widths=[{"width": 16, "heads": 2}],
            finals__trials=1,
            finals__seeds=1,
            finals__constant_rates=[],
        ),
        manifest(),
        None,
        lambda *_: 1,
    )
    # Patch embedding, positions, two blocks, norm and head of a ViT of width 16, by hand.
    block = 2 * 2 * 16 + (16 * 48 + 48) + (16 * 16 + 16) + (16 * 64 + 64) + (64 * 16 + 16)
    parameters = (192 * 16 + 16) + 17 * 16 + 16 + 2 * block + 2 * 16 + (16 * 2 + 2)
    # Base and final: two checkpoints each and the best one, of weights, two moments, and a model.
    assert one.checkpoint_bytes[1] == 2 * 3 * 16 * parameters


def test_what_is_off_or_given_costs_nothing_and_a_budget_bounds_trials():
    widths = [{"width": 16, "heads": 2, "checkpoint": "x"}, {"width": 32, "heads": 2}]
    found = estimate(
        config(space__widths=widths, budget__trials=3, calibrate__enabled=True),
        manifest(),
        FOUND,
        lambda *_: 2,
    )
    assert stage(found, "base").jobs == (1, 1) and found.trials == (3, 3)
    assert stage(found, "calibrate").device_seconds[0] > 0


def test_more_workers_than_there_are_leave_the_clock_out():
    found = estimate(config(), manifest(), FOUND, lambda num, *_: 0 if num == 2 else 3)
    assert stage(found, "base").seconds is None and stage(found, "base").device_seconds is not None
    assert found.seconds is None and found.device_seconds is not None


def test_seconds_per_image_are_those_of_the_largest_batch_the_time_allows():
    sizes = []

    def run(batch):
        sizes.append(batch)
        time.sleep(0.001 * batch)

    fast, slow = seconds_per_image(run, 32, 1.0, "cpu")
    assert max(sizes) == 32
    assert 0.001 <= fast <= slow
    sizes.clear()
    seconds_per_image(run, 10**6, 0.2, "cpu")
    assert max(sizes) < 1000, "a batch that takes too long is never begun"


def test_the_command_times_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare("digits", tmp_path / "data")
    Path("s.yaml").write_text(yaml.safe_dump(CONFIG))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    begun = time.monotonic()
    result = CliRunner().invoke(app, ["plan", "s.yaml", "--seconds", "4", "--json"])
    assert result.exit_code == 0, result.output
    assert time.monotonic() - begun < 240
    found = json.loads(result.output)
    assert found["device_hours"][0] < found["device_hours"][1]
    assert set(found["probe"]["rates"]) == {"16", "32"} and found["probe"]["seconds"] < 60
    assert [s["stage"] for s in found["stages"]] == ["base", "screen", "finals", "publish"]
    text = CliRunner().invoke(app, ["plan", "s.yaml", "--no-probe"]).output
    assert "13 to 20 trials" in text and "betons" in text
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("space.max_gmacs=1e-9", "GMACs"),
        ("space.method=magic", "magic"),
        ("data.path=nowhere", "nowhere"),
        ("finals.trails=3", "did you mean trials"),
        ("budget.deadline=soon", "neither a duration"),
    ],
)
def test_a_bad_config_is_said_at_once(tmp_path, monkeypatch, override, says):
    monkeypatch.chdir(tmp_path)
    if "data.path" not in override:
        prepare("digits", tmp_path / "data")
    Path("s.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.raises(UserError, match=says):
        CliRunner().invoke(app, ["plan", "s.yaml", "--set", override], catch_exceptions=False)


def test_sizes_are_said_as_people_say_them():
    assert [size(n) for n in (0, 999, 1_500, 2.5e9, 3e12)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 GB",
        "3 TB",
    ]
