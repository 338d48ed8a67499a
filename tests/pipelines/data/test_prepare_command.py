"""`tokenpool prepare` as it is typed."""

import io
import json
import os

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from pipelines.commands import prepare_command as command
from pipelines.commands.prepare_command import prepare
from pipelines.data import parallel
from pipelines.errors import UserError

app = typer.Typer()
app.command()(prepare)


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_it_prepares_and_says_what(tmp_path):
    first = run("glyphs", tmp_path / "g", "--count", 180, "--size", 16, "--workers", 1)
    assert first.exit_code == 0, first.output
    # Five images a class: rounding gives val and minival at least one of each.
    assert "prepared: train 108, minival 36, val 36 images of 36 classes" in first.output
    again = run("glyphs", tmp_path / "g", "--count", 180, "--size", 16)
    assert "is complete and verified" in again.output


def test_json_is_the_manifest(tmp_path):
    result = run("glyphs", tmp_path / "g", "--count", 72, "--size", 16, "--json", "--workers", 1)
    printed = json.loads(result.stdout)
    assert printed == json.loads((tmp_path / "g" / "manifest.json").read_text())


def test_off_a_terminal_progress_is_plain_lines(monkeypatch):
    lines = io.StringIO()
    clock = iter([100.0, 101.0, 107.0, 108.0, 110.0])
    monkeypatch.setattr(command.time, "monotonic", lambda: next(clock))
    console = Console(file=lines, force_terminal=False, highlight=False, width=40)
    with command._Progress(console) as progress:
        for done in (1000, 1200, 1700, 1900, 2000):
            progress.update(done, 2000)
    assert lines.getvalue().splitlines() == [
        "preparing 2,000 images, 1,000 of them done before",
        "1,700 of 2,000 images, 100 images/s, 0:00:03 left",
        "2,000 of 2,000 images, 100 images/s, 0:00:00 left",
    ]


def test_on_a_terminal_it_is_a_bar():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with command._Progress(console) as progress:
        for done in (0, 500, 1000):
            progress.update(done, 1000)
        progress._bar.refresh()
        shown = screen.getvalue()
    assert "1000/1000" in shown and "images/s" in shown


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--quality", 101), "option quality"),
        (("--minival", 1.5), "option minival"),
        (("--num-glyphs", 99), "option num_glyphs"),
    ],
)
def test_impossible_options_are_named(tmp_path, option, message):
    result = run("glyphs", tmp_path / "g", *option)
    assert isinstance(result.exception, UserError) and message in str(result.exception)
    assert result.exception.exit_code == 2 and not (tmp_path / "g").exists()


def test_classes_are_a_number_or_names(photos, tmp_path):
    for text, classes in (("2", ["c0", "c1"]), ("c2, c0", ["c0", "c2"])):
        out = tmp_path / text.replace(" ", "")
        result = run(photos, out, "--classes", text, "--workers", 1)
        assert result.exit_code == 0, result.exception
        assert json.loads((out / "manifest.json").read_text())["classes"] == classes


def test_a_killed_worker_ends_in_one_line(tmp_path, photos, monkeypatch):
    """An out-of-memory kill, say: no hang, finished shards stay."""
    from pipelines.data.sources import folder

    monkeypatch.setattr(folder, "_UNIT", 10)
    monkeypatch.setattr(parallel, "_make_and_write", _KillsItsWorker())
    result = run(photos, tmp_path / "out", "--workers", 2)
    assert isinstance(result.exception, UserError)
    assert "a worker process was killed" in str(result.exception)


class _KillsItsWorker:
    """Unpickling it, which the worker does first, ends the worker by SIGABRT."""

    def __reduce__(self):
        return os.abort, ()
