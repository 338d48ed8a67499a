"""`tokenpool bench quality`: schedules, intervals, and a whole comparison on a tiny world."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

import tokenpool as tp
from benchmarks.quality.cells import Bench, right_of
from benchmarks.quality.config import QualityConfig
from benchmarks.quality.report import _methods, _shapes, matched
from benchmarks.quality.schedules import by_hand, diffrate, learnt, shape_names
from benchmarks.real.bootstrap import difference_interval
from pipelines.commands.bench_quality_command import bench_quality
from pipelines.errors import UserError

TINY = {
    "name": "tiny",
    "model": {"patch_size": 8, "depth": 3},
    "widths": [{"width": 32, "heads": 2}, {"width": 16, "heads": 1}],
    "base": {"epochs": 2, "batch_size": 64, "lr": 0.002, "warmup_epochs": 0.5},
    "finetune": {"epochs": 1, "batch_size": 32, "lr": 0.0005, "warmup_epochs": 0},
    "finetune_images": 64,
    "methods": ["powerbert", "wkmedoids", "random"],
    "k_from": "constant rate",
    "shapes": ["constant rate", "diffrate"],
    "costs": [0.7],
    "shape_costs": [0.5],
    "seeds": 2,
}
SPEC = tp.VitSpec(
    width=384, depth=12, grid=(14, 14), prefix=1, hidden=1536, patch_in=768, classes=1000, heads=6
)


def cost(schedule):
    return tp.vit_macs(SPEC, schedule, "powerbert").total


DENSE = cost(tp.Schedule.dense(12, 196))


@pytest.mark.parametrize("name", [n for n in shape_names() if n not in ("powerbert", "squeeze")])
def test_a_shape_comes_close_below_its_cost(name):
    found = by_hand(name, 12, 196, cost, 0.6 * DENSE)
    assert found is not None and 0.57 * DENSE < cost(found) <= 0.6 * DENSE


def test_the_published_curve_is_itself_at_its_own_depth_and_cost():
    published = tp.Schedule((196, 193, 175, 155, 140, 132, 120, 106, 87, 63, 55, 2))
    found = diffrate(12, 196, cost, cost(published))
    assert np.abs(np.subtract(found, published)).max() <= 1
    assert len(diffrate(6, 64, lambda s: sum(s) / 384, 0.5)) == 6


def test_penalties_are_tried_until_the_cost_is_met():
    tried = []

    def train(penalty):
        tried.append(penalty)
        return tp.Schedule([max(1, round(10 - 1000 * penalty))])

    found = learnt(train, lambda s: s[0], 4, runs=12)
    assert found == tp.Schedule([4]) and len(tried) == 12
    assert learnt(lambda _: tp.Schedule([9]), lambda s: s[0], 4, runs=3) is None


def test_the_interval_of_a_difference():
    rng = np.random.default_rng(1)
    base = rng.random((3, 400)) < 0.6
    better = base | (rng.random((3, 400)) < 0.3)
    mean, low, high = difference_interval(better, base)
    assert mean == pytest.approx(better.mean() - base.mean())
    assert 0 < low < mean < high
    assert difference_interval(base, base) == (0, 0, 0)
    # One seed: the plain bootstrap over images, whose width theory knows.
    mean, low, high = difference_interval(better[:1], base[:1])
    apart = better[0].astype(float) - base[0]
    assert (high - low) / 2 == pytest.approx(1.96 * apart.std() / 400**0.5, rel=0.1)


def row(width, shape, gmacs, right, seed=0, method="leader"):
    right = np.array(right, dtype=bool)
    return {
        "part": "dense" if shape == "dense" else "methods", "realised": str(gmacs),
        "width": width, "method": method, "shape": shape, "schedule": str(gmacs), "seed": seed,
        "gmacs": gmacs, "top1": right.mean(), "top1_minival": right.mean(), "images": len(right),
        "right": np.packbits(right).tobytes().hex(),
    }  # fmt: skip


def test_the_cheapest_wider_model_that_is_as_good():
    plain = row(8, "dense", 1.0, [1, 1, 0, 0, 1, 0, 0, 0, 1])
    assert right_of(plain).tolist() == [1, 1, 0, 0, 1, 0, 0, 0, 1]
    rows = [
        plain,
        row(16, "dense", 3.0, [1] * 9),
        row(16, "x", 0.5, [1, 1, 0, 0, 1, 0, 0, 0, 0]),  # less accurate
        row(16, "x", 0.7, [1, 1, 1, 0, 1, 0, 0, 0, 1]),
        row(16, "x", 0.8, [1] * 9),
    ]
    (found,) = matched(rows)
    assert (found["width"], found["by_gmacs"], found["fewer"]) == (8, 0.7, 0.3)
    assert matched(rows[:3]) == [{"width": 8, "gmacs": 1.0, "by": None}]


def test_what_is_not_at_equal_k_is_not_compared_so():
    """Another schedule of the same method and share, and one that keeps more than it was told."""
    config = QualityConfig.model_validate(
        {
            **TINY,
            "data": {"path": "x", "image_size": 32},
            "methods": ["leader", "wkmedoids", "tome"],
        }
    )

    def cell(method, part, top1, **more):
        right = np.arange(100) < 100 * top1
        made = row(32, "constant rate", 1.0, right, method=method)
        return made | {"part": part, "share": 0.5, "top1_untrained": 0.5} | more

    rows = [
        cell("leader", "methods", 0.8),
        cell("leader", "shapes", 0.9, schedule="other", realised="other"),
        cell("wkmedoids", "methods", 0.8),
        cell("tome", "methods", 0.7, realised="more"),
    ]
    text = "\n".join(_methods(config, rows))
    assert "| `leader` | 80.00 ± 0.00 |" in text and "| `tome` | 70.00 ± 0.00 † |" in text
    assert "| `leader` − `wkmedoids` | +0.00 (+0.00 to +0.00) |" in text
    assert "| `leader` − `tome` | – |" in text
    assert "90.00 ± 0.00" in "\n".join(_shapes(config, rows, []))


def test_squeeze_sees_what_the_model_sees(digits, tmp_path, monkeypatch):
    values = {**TINY, "data": {"path": str(digits), "image_size": 32, "loader": "torchvision"}}
    config = QualityConfig.model_validate(values | {"shapes": ["squeeze"], "squeeze_images": 40})
    bench = Bench(config, tmp_path, "cpu", lambda _: None)
    seen = []

    def squeeze(model, batches, rate, **options):
        ((pixels, labels),) = batches
        seen.append((pixels, labels))
        best = SimpleNamespace(schedule=(8, 4, 2))
        return model, SimpleNamespace(best=best)

    monkeypatch.setattr("benchmarks.quality.cells.squeeze", squeeze)
    assert bench.schedule(32, "squeeze", "leader", 0.5) == tp.Schedule((8, 4, 2))
    ((pixels, labels),) = seen
    assert len(pixels) == 40 and 1 < pixels.abs().max() < 10 and len(set(labels.tolist())) > 4


def test_models_that_cannot_be_compared_are_one_line(digits, tmp_path):
    values = {**TINY, "data": {"path": str(digits), "image_size": 32}, "widths": [], "base": None}
    config = QualityConfig.model_validate(values | {"models": [str(tmp_path / "none")]})
    with pytest.raises(UserError, match=r"models: .*none cannot be opened"):
        Bench(config, tmp_path, "cpu", lambda _: None)
    saved = tp.save(tp.build_vit(32, 8, 32, 3, 2, 7), tmp_path / "seven")
    config = config.model_copy(update={"models": (saved,)})
    with pytest.raises(UserError, match="has 7 classes, the data 10"):
        Bench(config, tmp_path, "cpu", lambda _: None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": []}, "give widths to train"),
        ({"base": None}, "base is missing"),
        ({"shapes": ["spiral"]}, "no shape 'spiral'"),
        ({"k_from": "squeeze"}, "name it in shapes"),
        ({"methods": ["kmeens"]}, "kmeens"),
        ({"data": {"path": "x", "image_size": 30}}, "not a multiple"),
    ],
)
def test_what_cannot_be_compared_is_said(change, message):
    with pytest.raises(ValueError, match=message):
        QualityConfig.model_validate({**TINY, "data": {"path": "x", "image_size": 32}} | change)


def test_a_comparison_goes_on_and_a_cell_repeats_itself(digits, tmp_path):
    app = typer.Typer()
    app.command()(bench_quality)
    data = {"path": str(digits), "image_size": 32, "loader": "torchvision"}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "data": data}))

    def run(cache, *words):
        ran = CliRunner().invoke(
            app,
            [
                "--config",
                str(path),
                "--cache",
                str(tmp_path / cache),
                "--out",
                str(tmp_path),
                *words,
            ],
        )
        assert ran.exit_code == 0, ran.output
        return json.loads((tmp_path / "quality-tiny.json").read_text())["rows"], ran.output

    first, _ = run("one", "--set", "seeds=1")
    again, printed = run("one")
    assert again[: len(first)] == first and len(again) == 2 * len(first)
    other, _ = run("two", "--set", "seeds=1")
    plain = [{k: v for k, v in row.items() if k != "seconds"} for row in first]
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in other] == plain
    assert {row["method"] for row in first} == {
        "dense",
        "powerbert",
        "wkmedoids",
        "random",
        "leader",
    }
    for width in (32, 16):
        equal_k = [r for r in first if (r["part"], r["width"]) == ("methods", width)]
        assert len(equal_k) == 3 and len({r["schedule"] for r in equal_k}) == 1
    assert "| `wkmedoids` − `powerbert` |" in printed and "plain width" in printed
    assert (tmp_path / "quality-tiny.png").stat().st_size > 10_000
