"""Names that are no text, or more than one line of it: of images, classes, the source and OUT."""

import io
import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from pipelines.commands.prepare_command import prepare
from pipelines.data.loader import make_loader
from pipelines.data.manifest import load_manifest
from pipelines.data.names import printable, storable
from pipelines.errors import UserError

from .folders import make, picture

app = typer.Typer()
app.command()(prepare)

# Latin-1 as old archives hold it, a byte that no encoding has, a new line, an escape sequence,
# an emoji, a right-to-left mark, blanks and signs that formats give a meaning to.
ODD = [b"caf\xe9", b"\xff", b"a\nb", b"\x1b[31mred", "🐈".encode(), "\u202eabc".encode(),
       b" lead", b'"q", [x]:smile:', b"%s{0}"]  # fmt: skip


def run(*arguments):
    words = [os.fsdecode(a) if isinstance(a, bytes | Path) else str(a) for a in arguments]
    result = CliRunner().invoke(app, [*words, "--workers", "1"])
    if isinstance(result.exception, UserError):
        assert "\n" not in str(result.exception)
    elif result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("name", ODD, ids=range(len(ODD)))
def test_images_classes_source_and_out(tmp_path, name):
    odd = os.fsdecode(name)
    source = make(tmp_path / f"s{odd}" / odd, f"{odd}1", "b", count=6)
    (source / "b" / f"{odd}.png").write_bytes(picture(99))
    out = tmp_path / f"o{odd}"
    result = run(source, out)
    assert result.exit_code == 0
    assert set(load_manifest(out).classes) == {f"{storable(odd)}1", "b"}
    assert all(line.isprintable() for line in result.output.splitlines())
    index = pq.read_table(io.BytesIO((out / "index.parquet").read_bytes())).to_pylist()
    assert f"b/{storable(odd)}.png" in {row["source_name"] for row in index}
    loader = make_loader(out, "val", batch_size=2, train=False)
    assert len(next(iter(loader))[1]) == 2
    loader.close()
    assert "is complete and verified" in run(source, out).output  # typed again


@pytest.mark.parametrize("name", ODD, ids=range(len(ODD)))
def test_broken_ones_are_refused_in_one_line_and_skipped(tmp_path, name):
    odd = os.fsdecode(name)
    source = make(tmp_path / "s", "a", "b", count=4)
    (source / "a" / f"{odd}.png").write_bytes(b"no")
    (source / "b" / f"{odd}-link.png").symlink_to(f"nowhere{odd}")
    (source / "b" / f"{odd}-self.png").symlink_to(f"{odd}-self.png")
    refused = run(source, tmp_path / "o")
    assert isinstance(refused.exception, UserError) and "3 of 9" in str(refused.exception)
    listed = (tmp_path / "o.partial" / "rejected.csv").read_text()
    assert f"{storable(odd)}.png".replace('"', '""') in listed
    assert isinstance(run(source, tmp_path / "o", "--dry-run").exception, UserError)
    assert run(source, tmp_path / "o", "--skip-bad").exit_code == 0


@pytest.mark.parametrize("words", [(), ("--dry-run",), ("--skip-bad",), ("--json",)])
def test_a_class_chosen_by_an_odd_name(tmp_path, words):
    source = make(tmp_path / "s", os.fsdecode(b"caf\xe9"), "b", "c", count=4)
    chosen = ("--class", os.fsdecode(b"caf\xe9"), "--class", "b")
    result = run(source, tmp_path / "o", *chosen, *words)
    assert result.exit_code == 0
    if not words:
        assert load_manifest(tmp_path / "o").classes == ["b", "caf\\xe9"]
    if words == ("--json",):
        assert json.loads(result.stdout)["classes"] == ["b", "caf\\xe9"]
    nothing = run(source, tmp_path / "p", "--class", os.fsdecode(b"\xff\n"))
    assert isinstance(nothing.exception, UserError)


def test_names_as_they_are_stored_and_shown():
    assert storable("üñí 猫") == "üñí 猫"
    assert storable("a\nb") == "a\nb" and printable("a\nb\x1b[0m") == "a\\nb\\x1b[0m"
    assert storable("caf\udce9") == "caf\\xe9"
    assert storable("half \ud83d") == "half \\ud83d"  # out of a JSON file, not of a file system
