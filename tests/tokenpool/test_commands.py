"""`analyze` and `schedule powerbert` on real digits, through typer."""

import csv
import json

import pytest
import typer
from typer.testing import CliRunner

import tokenpool as tp
from pipelines.commands.analyze_command import analyze
from pipelines.commands.schedule_command import app as schedule_app
from pipelines.errors import UserError


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
