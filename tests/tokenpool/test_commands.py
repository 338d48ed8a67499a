"""`analyze`, `schedule powerbert` and `bench pooling` on real digits, through typer."""

import csv
import functools
import json

import pytest
import typer
from typer.testing import CliRunner

import tokenpool as tp
from pipelines.commands.analyze import analyze
from pipelines.commands.bench_pooling import pooling
from pipelines.commands.schedule import app as schedule_app
from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare
from pipelines.errors import UserError
from tokenpool import benchmark


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "digits"
    prepare("digits", out, PrepareOptions())
    return out


@pytest.fixture
def saved(tmp_path):
    return tp.save(tp.build_vit(32, 4, 24, 3, 3, 10), tmp_path / "model")


def run(command, *arguments):
    app = command
    if not isinstance(command, typer.Typer):
        app = typer.Typer()
        app.command()(command)
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_analyze_writes_plots_and_numbers(digits, saved, tmp_path):
    out = tmp_path / "analysis"
    text = run(
        analyze,
        saved,
        digits,
        "--out",
        out,
        "--images",
        40,
        "--methods",
        "kmedoids,random",
        "--maps",
        2,
    )
    assert "low-pass" in text and "GMACs" in text
    assert sorted(path.name for path in out.iterdir()) == [
        "costs.csv", "costs.png", "low_pass.csv", "low_pass.png", "reconstruction_error.csv",
        "reconstruction_error.png", "token_maps.png",
    ]  # fmt: skip
    dense = {
        r["component"]: int(r["macs"]) for r in rows(out / "costs.csv") if r["model"] == "dense"
    }
    assert sum(dense.values()) == tp.macs(tp.load(saved)).total
    assert [r["layer"] for r in rows(out / "low_pass.csv")] == ["1", "2", "3"]
    errors = rows(out / "reconstruction_error.csv")
    assert {r["method"] for r in errors} == {"kmedoids", "random"}


def test_analyze_prints_json(digits, saved, tmp_path):
    text = run(
        analyze, saved, digits, "--out", tmp_path / "a", "--images", 8, "--methods", "kmeans",
        "--schedule", "40,30,20", "--method", "powerbert", "--json",
    )  # fmt: skip
    found = json.loads(text)
    assert found["schedule"] == "40,30,20" and found["method"] == "powerbert"
    assert len(found["low_pass"]) == 3


def test_powerbert_prints_one_schedule_per_penalty(digits, saved):
    text = run(
        schedule_app, "powerbert", saved, digits, "--penalty", 0, "--penalty", 1, "--steps", 4,
        "--learning-rate", 0.1, "--json",
    )  # fmt: skip
    first, second = json.loads(text)
    assert first["penalty"] == 0 and second["penalty"] == 1
    counts = [tp.Schedule.parse(row["schedule"]) for row in (first, second)]
    assert sum(counts[0]) > sum(counts[1])
    assert second["gmacs"] < first["gmacs"] <= first["gmacs_wkmedoids"]


def test_bad_input_is_one_line(digits, saved, tmp_path):
    for arguments, message in (
        ((tmp_path / "none", digits), "neither a folder with a saved model nor a timm"),
        ((digits, digits), "there is no saved model at"),
        ((saved, tmp_path / "none"), "no prepared data at"),
        ((saved, digits, "--schedule", "40,50,20"), "layer 2 keeps 50 tokens but layer 1"),
        ((saved, digits, "--schedule", "40,30"), "2 layers but the model has 3 blocks"),
        ((saved, digits, "--method", "magic"), "no pooling method 'magic'"),
        ((saved, digits, "--methods", "kmeans,magic"), "no pooling method 'magic'"),
    ):
        with pytest.raises(UserError, match=message) as error:
            run(analyze, *arguments, "--out", tmp_path / "out")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="penalty is -1"):
        run(schedule_app, "powerbert", saved, digits, "--penalty", -1)


def test_the_benchmark_times_all_variants_in_turn(tmp_path, monkeypatch):
    variants = [
        benchmark.Variant("dense"),
        benchmark.Variant("pooled", "wkmedoids", tp.Schedule((10, 5)), {"features": "keys"}),
    ]
    small = functools.partial(
        benchmark.run,
        variants=variants,
        model_options={
            "img_size": 16,
            "patch_size": 4,
            "embed_dim": 24,
            "num_heads": 3,
            "depth": 2,
        },
    )
    steps = []
    found = list(
        small(
            "vit_tiny_patch16_224",
            modes=("fp32-eager", "bf16-eager"),
            batches=(2, 1),
            rounds=2,
            progress=steps.append,
        )
    )
    assert [(r["mode"], r["batch"], r["variant"]) for r in found] == [
        (mode, batch, name)
        for mode in ("fp32-eager", "bf16-eager")
        for batch in (2, 1)
        for name in ("dense", "pooled")
    ]
    assert [step.rpartition(" ")[2] for step in steps[:4]] == ["dense", "pooled"] * 2
    for row in found:
        assert row["images_per_second"] > 0 and row["peak_mib"] > 0 and len(row["seconds"]) == 2
        assert row["realised"] == pytest.approx(row["speedup"] / row["mac_ratio"], abs=0.01)
        assert row["hardware"] and row["torch"] and row["date"] and row["command"]
    assert found[0]["mac_ratio"] == 1 and found[1]["mac_ratio"] > 1
    assert found[0]["pooling_ms"] is None and found[1]["pooling_ms"] > 0

    monkeypatch.setattr(benchmark, "run", small)
    out = tmp_path / "rows.jsonl"
    text = run(
        pooling, "--model", "vit_tiny_patch16_224", "--mode", "fp32-eager", "--rounds", 1,
        "--batch-size", 2, "--out", out, "--json",
    )  # fmt: skip
    assert [json.loads(line)["variant"] for line in out.read_text().splitlines()] == [
        "dense",
        "pooled",
    ]
    assert len(json.loads(text)) == 2
    with pytest.raises(UserError, match="no mode 'fp8'"):
        run(pooling, "--mode", "fp8")
    with pytest.raises(UserError, match="--width is 40"):
        run(pooling, "--width", 40)


def test_the_benchmark_runs_the_demos_model_in_a_form_of_the_callers():
    seen = []

    def runner(model):
        seen.append((tp.method_of(model), model.embed_dim))
        return lambda images: seen.append(tuple(images.shape))

    found = list(
        benchmark.run(
            "demo",
            model=tp.build_vit(32, 4, 32, 2, 1, 10),
            modes=("mine",),
            runners={"mine": runner},
            only="leader|ToMe, same",
            batches=(1,),
            rounds=1,
            details=False,
            cpu_time=True,
        )
    )
    assert [row["variant"] for row in found] == ["dense", "leader", "ToMe, same counts"]
    assert [entry for entry in seen if entry[1] == 32] == [
        (None, 32),
        ("leader", 32),
        ("tome", 32),
    ]
    # Two rounds to warm up and one that counts, of each.
    assert seen.count((1, 3, 32, 32)) == 9
    assert "peak_mib" not in found[0] and found[0]["model"] == "demo"
    assert found[0]["clock"] == "cpu"
