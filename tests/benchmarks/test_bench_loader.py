"""The loader's benchmark, small: every contender delivers, and the ratios follow from the rows."""

import json
import subprocess
import sys

import pytest

from benchmarks.loader.loader_speed import run
from benchmarks.loader.loaders import bare_decoder
from benchmarks.loader.photos import make_photos
from pipelines.errors import UserError


@pytest.mark.slow  # FFCV's own loader compiles for 10 s, DataLoaders start processes
def test_the_command_measures_all_contenders_and_writes_the_file(tmp_path):
    out = tmp_path / "loader.json"
    # In a process of its own: once FFCV's loader has started numba's threads, a process that forks
    # afterwards, as other tests do, may hang when it ends.
    code = "import typer; from pipelines.commands.bench_loader_command import bench_loader as f; "
    code += "typer.run(f)"
    options = ["--cores", "1", "--images", "130", "--turns", "1", "--json", "--out", str(out)]
    command = [sys.executable, "-c", code, *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed == json.loads(out.read_text())
    rates = {row["name"]: row["images_per_s"] for row in printed["rows"]}
    assert len(rates) == 7 and min(rates.values()) > 0
    ratio = printed["ratios"]["of the bare decoder"]
    assert ratio == pytest.approx(rates["tokenpool (ffcv)"] / rates["bare libjpeg-turbo"])
    for fact in ("hardware", "date", "command", "ffcv", "torchvision"):
        assert printed[fact]


def test_the_limit_decodes_every_file(tmp_path):
    make_photos(tmp_path, 9)
    assert list(bare_decoder(tmp_path, 2)()) == [9]


def test_made_photographs_are_repeatable(tmp_path):
    for name in ("a", "b"):
        make_photos(tmp_path / name, 3)
    files = [sorted(p.read_bytes() for p in (tmp_path / n).rglob("*.jpg")) for n in ("a", "b")]
    assert files[0] == files[1] and len(set(files[0])) == 3


def test_more_cores_than_there_are():
    with pytest.raises(UserError, match="--cores 5000: this process may use"):
        run(cores=5000)
