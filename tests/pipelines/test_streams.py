"""Terminals and logs of other encodings than UTF-8, and readers that go away."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ledgers
import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_process import END, run_commands
from thinning import fast

from pipelines.streams import as_utf8, readable

TOKENPOOL = str(Path(sys.executable).parent / "tokenpool")
# The script's three, and their neighbours: the Windows and Mac ones lack other characters, KOI8
# and Shift-JIS have Greek or arrows of their own, and the last is not even a superset of ASCII.
ENCODINGS = ("ascii", "latin-1", "cp437", "cp1252", "mac-roman", "koi8-r", "shift-jis", "utf-16")
COMMANDS = (
    ("front", "größe", "--all"),
    ("status", "größe"),
    ("explain", "größe", "t001"),
    ("pick", "größe", "--knee"),
    ("front", "größe", "--json"),
    ("status", "größe", "--json"),
    ("front", "größe", "--csv"),
    ("logs", "größe"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A search with a name beyond ASCII, under a folder with bytes that are no UTF-8."""
    root = tmp_path_factory.mktemp("streams") / os.fsdecode(b"gr\xfcn \xe2\x98\x85")
    ledgers.write_ledger(root / "runs", "größe", ledgers.events())
    return root


def run(words, place, **environment):
    return subprocess.run(
        [TOKENPOOL, *words], cwd=place, capture_output=True, timeout=100, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("encoding", fast(1, ENCODINGS))
def test_every_command_is_written_in_the_terminals_own_encoding(place, encoding):
    ran = run_commands(COMMANDS, cwd=place, timeout=100, env={"PYTHONIOENCODING": encoding})
    shown = ran.stdout.decode(encoding)  # strictly: nothing else is in it
    assert ran.returncode == 0 and not ran.stderr
    assert shown.count(f"{END}0") == len(COMMANDS)
    parts = shown.split(f"{END}0\n")
    assert json.loads(parts[4])["name"] == json.loads(parts[5])["name"] == "größe"
    name = "gr\u00f6\u00dfe" if encoding in ("latin-1", "cp437", "utf-16") else "gr"
    assert f"Front of {name}" in parts[0]
    assert "t001" in parts[2] and "?" not in parts[0]


def test_a_refusal_too(place):
    ran = run(["front", "★"], place, PYTHONIOENCODING="ascii")
    assert ran.returncode == 2 and ran.stderr.decode("ascii").count("\n") == 1


@pytest.mark.parametrize(
    "variables",
    fast(
        1,
        [
            {"LC_ALL": "C"},  # Python makes UTF-8 of it
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},  # and here ASCII
            {
                "LC_ALL": "POSIX",
                "PYTHONIOENCODING": ":strict",
            },  # no more than how errors are handled
        ],
    ),
)
def test_a_locale_without_letters(place, variables):
    """A neighbour: files are opened in the locale's encoding as well, and paths are read so."""
    for words in (("front", "größe"), ("report", "größe")):
        ran = run(words, place, **variables)
        assert ran.returncode == 0, ran.stderr.decode(errors="replace")
    page = place / "runs/searches/größe/report.html"
    assert "größe" in page.read_text(encoding="utf-8")


def test_training_without_ray(tmp_path):
    """A neighbour: another program of ours, `python -m pipelines.train`."""
    config = tmp_path / "★.yaml"
    ran = subprocess.run(
        [sys.executable, "-m", "pipelines.train", str(config)], capture_output=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"}, timeout=100,
    )  # fmt: skip
    assert ran.returncode == 2 and b"no config file" in ran.stderr
    assert b"Traceback" not in ran.stderr


@pytest.mark.parametrize(
    "words", fast(1, [["front", "größe", "--all"], ["logs", "größe"], ["--help"]])
)
def test_a_reader_that_is_gone_ends_it_without_a_word(place, words):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as gone:
        ran = subprocess.run(
            [TOKENPOOL, *words], cwd=place, stdout=gone, stderr=subprocess.PIPE, timeout=100,
            check=False,
        )  # fmt: skip
    assert ran.stderr == b"" and ran.returncode in (0, 1)


def test_no_output_at_all(place):
    """A neighbour: services are started with standard output closed, and Python has none then."""
    ran = subprocess.run(
        ["sh", "-c", f'"{TOKENPOOL}" status größe >&-'], cwd=place, stderr=subprocess.PIPE,
        timeout=100, check=False,
    )  # fmt: skip
    assert ran.stderr == b"" and ran.returncode == 0


@given(st.text())
def test_readable_text_is_ascii_and_breaks_no_json(text):
    shown = readable(text)
    assert shown.isascii()
    if not set(text) & set('"\\') and text.isprintable():
        json.loads(f'"{shown}"')


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_readable_text_leaves_ascii(text):
    assert readable(text) == text


@given(st.text())
def test_what_is_written_is_utf8(text):
    assert as_utf8(text) == text


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_every_text_can_be_written(text):
    as_utf8(text).encode()
    readable(text).encode("ascii")


@pytest.mark.parametrize("given", ["gr\udcc3\udcbcn", "gr\udcfcn", f"gr{chr(0xD800)}n", "\udcff★"])
def test_what_python_could_not_read_is_written_all_the_same(given):
    shown = as_utf8(given)
    shown.encode()
    assert "gr" not in given or shown in ("grün", "gr\\xfcn", "gr\\ud800n")


def test_what_is_readable():
    assert readable("τ → ★ 10² ü – … 猫 \udcfc") == "tau -> * 10^2 u - ... \\u732b \\udcfc"


def test_output_to_a_full_disk_ends_in_one_line():
    tool = Path(sys.executable).with_name("tokenpool")
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [tool, "doctor", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1 and "is full" in ended.stderr
