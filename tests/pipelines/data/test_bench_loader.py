"""The loader's benchmark, small: every contender delivers, and the ratios follow from the rows."""

import json

import pytest
import typer
from typer.testing import CliRunner

from pipelines.commands.bench_loader import bench_loader
from pipelines.data import bench_loader as module
from pipelines.errors import UserError

app = typer.Typer()
app.command()(bench_loader)


@pytest.mark.slow  # FFCV's own loader compiles for 10 s, DataLoaders start processes
def test_the_command_measures_all_contenders_and_writes_the_file(tmp_path):
    out = tmp_path / "loader.json"
    result = CliRunner().invoke(
        app, ["--cores", "1", "--images", "130", "--turns", "1", "--json", "--out", str(out)]
    )
    assert result.exit_code == 0, result.exception
    printed = json.loads(result.stdout)
    assert printed == json.loads(out.read_text())
    rates = {row["name"]: row["images_per_s"] for row in printed["rows"]}
    assert len(rates) == 7 and min(rates.values()) > 0
    ratio = printed["ratios"]["of the bare decoder"]
    assert ratio == pytest.approx(rates["tokenpool (ffcv)"] / rates["bare libjpeg-turbo"])
    for fact in ("hardware", "date", "command", "ffcv", "torchvision"):
        assert printed[fact]


def test_the_limit_decodes_every_file(photos):
    assert list(module._bare_decoder(photos, 2)()) == [36]


def test_made_photographs_are_repeatable(tmp_path):
    for name in ("a", "b"):
        module.make_photos(tmp_path / name, 3)
    files = [sorted(p.read_bytes() for p in (tmp_path / n).rglob("*.jpg")) for n in ("a", "b")]
    assert files[0] == files[1] and len(set(files[0])) == 3


def test_more_cores_than_there_are():
    with pytest.raises(UserError, match="--cores 5000: this process may use"):
        module.run(cores=5000)
