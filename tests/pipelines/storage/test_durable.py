"""What is made aside is there whole, or what was there before is."""

import errno
import hashlib
import os

import pytest

from pipelines.errors import UserError
from pipelines.storage.durable import made_aside, write_atomic, write_durably, write_text
from pipelines.storage.hashes import file_hash, json_hash, text_hash


def fill(path, text):
    """Writes, and finds that the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_that_is_not_finished_changes_nothing(tmp_path):
    path = tmp_path / "x.json"
    write_durably(path, [b"first", b" of all"])
    with pytest.raises(UserError, match=r"cannot write .* No space"):
        write_atomic(path, lambda aside: fill(aside, "half"))
    assert path.read_text() == "first of all" and [*tmp_path.iterdir()] == [path]
    write_text(path, "second")
    assert path.read_text() == "second" and [*tmp_path.iterdir()] == [path]


def test_a_folder_is_made_the_same_way(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(UserError, match="make room"):
        write_atomic(path, lambda aside: fill(aside / "in" / "x", "half"))
    assert [*tmp_path.iterdir()] == []
    with made_aside(path) as aside:
        (aside / "in").mkdir(parents=True)
        (aside / "in" / "x").write_text("whole")
    assert (path / "in" / "x").read_text() == "whole" and [*tmp_path.iterdir()] == [path]


def test_where_nothing_can_be_written_one_line_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*x: .*; choose another target") as caught:
        write_atomic(tmp_path / "file" / "x", lambda aside: aside.touch())
    assert "\n" not in str(caught.value)


def test_hashes_are_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 10**6)
    whole = hashlib.sha256(b"abc" * 10**6).hexdigest()
    assert file_hash(tmp_path / "x") == text_hash("abc" * 10**6, 64) == whole
    assert text_hash(b"abc" * 10**6, 12) == whole[:12]
    assert json_hash({"b": 1, "a": [2]}) == json_hash({"a": [2], "b": 1}) != json_hash({"a": [2]})
