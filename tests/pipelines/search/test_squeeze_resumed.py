"""A squeeze that was stopped goes on; says how long it takes; keeps nothing half-written."""

import io
import itertools
import json
import os
from functools import partial

import pytest
import typer_runs
from rich.console import Console

import pipelines.console
import tokenpool as tp
from pipelines.commands.squeeze_command import squeeze
from pipelines.console import Screen
from pipelines.errors import UserError
from pipelines.search.scorer import Scorer
from pipelines.squeeze.answers import Answers, Seen
from pipelines.squeeze.forecast import in_words

WORDS = ("--rate", "0.6", "--schedules", "24", "--images", "150", "--json")

run = partial(typer_runs.invoke, squeeze)


def stopped_after(monkeypatch, parts, error=KeyboardInterrupt):
    """Ctrl-C (or worse) comes while the part after so many is computed."""
    whole, count = Scorer.beside_dense, itertools.count()

    def until(self, *args, **kwargs):
        if next(count) >= parts:
            raise error
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(Scorer, "beside_dense", until)


@pytest.mark.parametrize("parts", [2, 4, 9])
def test_a_run_that_was_stopped_goes_on_and_finds_the_same(
    trained, digits, tmp_path, monkeypatch, parts
):
    """Before anything is kept (2: the timing), in the probes, in the first look, in later ones."""
    whole = json.loads(run(trained, digits, *WORDS, "--out", tmp_path / "whole").stdout)
    out, kept = tmp_path / "out", tmp_path / "out.partial.jsonl"
    with monkeypatch.context() as patch:
        stopped_after(patch, parts)
        result = run(trained, digits, *WORDS, "--out", out)
        assert result.exit_code == 130
        assert "interrupted: type the same command to go on" in result.stderr
    assert kept.exists() and not out.exists()
    with kept.open("a") as file:
        file.write("[[16, 12, 9], 0, 6")  # as a kill in the midst of a line leaves it
    result = run(trained, digits, *WORDS, "--out", out)
    again = json.loads(result.stdout)
    assert again["best"] == whole["best"] and again["front"] == whole["front"]
    assert ("goes on from" in result.stderr) == (parts > 3)
    assert not kept.exists()


def test_what_is_known_is_not_measured_again(trained, digits, tmp_path, monkeypatch):
    seen = []
    inner = Scorer.beside_dense

    def counted(self, width, schedules, method, start, stop, told=None):
        seen.extend((tuple(s), start, stop) for s in schedules)
        return inner(self, width, schedules, method, start, stop, told)

    monkeypatch.setattr(Scorer, "beside_dense", counted)
    with monkeypatch.context() as patch:
        stopped_after(patch, 7)
        run(trained, digits, *WORDS, "--out", tmp_path / "out")
    first, timing = list(seen), 3
    seen.clear()
    run(trained, digits, *WORDS, "--out", tmp_path / "out")
    assert len(first) > 30
    assert not set(first[timing:]) & set(seen[timing:])


def test_a_file_of_another_squeeze_stops_it_and_stays(trained, digits, tmp_path, monkeypatch):
    """Neighbours: another bound, number, seed, method, and another model."""
    out, kept = tmp_path / "out", tmp_path / "out.partial.jsonl"
    with monkeypatch.context() as patch:
        stopped_after(patch, 6)
        run(trained, digits, *WORDS, "--out", out)
    before = kept.read_bytes()
    other = tp.load(trained)
    other.head.bias.data += 0.01
    tp.save(other, tmp_path / "other")
    changes = [("--seed", 1), ("--schedules", 25), ("--method", "kmeans"), ("--batch-size", 32)]
    for model, change in [(trained, c) for c in changes] + [(tmp_path / "other", ())]:
        with pytest.raises(UserError, match="left by a squeeze of another model, images or opt"):
            run(model, digits, *WORDS, *change, "--out", out)
        assert kept.read_bytes() == before and not out.exists()


def test_a_damaged_file_and_one_in_use_are_one_line(tmp_path):
    path = tmp_path / "x.partial.jsonl"
    for text in ("key\nnot json\n", "key\n[[3], 0]\n", 'key\n{"a": 1}\n'):
        path.write_text(text)
        with pytest.raises(UserError, match="damaged: remove it to begin anew"):
            Answers(path, "key", print)
    path.unlink()
    holder = Answers(path, "key", print)
    with pytest.raises(UserError, match="being written by another squeeze"):
        Answers(path, "key", print)
    holder.close()
    Answers(path, "key", print)
    with pytest.raises(UserError, match="cannot be written"):
        Answers(tmp_path / "x.partial.jsonl" / "y", "key", print)


def test_a_full_disk_is_said_once_and_the_work_goes_on(tmp_path, monkeypatch):
    said = []
    answers = Answers(tmp_path / "x", "key", said.append)
    monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    for start in (0, 64):
        answers.add({((3, 2), start, start + 64): Seen(0.1, 0.9, 0.8)})
    assert len(said) == 1 and "No space left" in said[0]
    assert answers.get(((3, 2), 64, 128)) == Seen(0.1, 0.9, 0.8)


def test_time_left_comes_now_and_then_and_a_low_guess_grows(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(pipelines.console.time, "monotonic", lambda: now[0])
    text = io.StringIO()
    with Screen(Console(file=text, width=200)).share_of("squeezing", 1000) as bar:
        for step in range(200):
            now[0] = step + 1.0
            bar.advance(5 if step < 150 else 10, note=f"divergence {step}")
    lines = text.getvalue().splitlines()
    assert len(lines) == 13  # every 15 s of 200
    assert lines[0] == "squeezing: 7%, 3:05 left  divergence 14"
    assert lines[-1].startswith("squeezing: 100%, 0:00 left")


def test_a_forecast_is_said_before_the_work(trained, digits, tmp_path):
    result = run(trained, digits, *WORDS, "--out", tmp_path / "out")
    (line,) = [line for line in result.stderr.splitlines() if "about" in line]
    assert "probes and 24 schedules on 150 images: about" in line
    assert in_words(0.2) == "1 s" and in_words(89) == "89 s"
    assert in_words(700) == "12 min" and in_words(9000) == "2.5 h"
