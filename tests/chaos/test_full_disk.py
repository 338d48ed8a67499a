"""The disk of a ledger is full, for real: one line, nothing half-written, and it goes on later."""

import os
import resource
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.search.ledger import LEDGER_NAME, Ledger, read_events


@contextmanager
def full_disk():
    """A file system of its own: 64 KiB in all, filled to the last page when it is asked."""
    folder = Path(tempfile.mkdtemp())
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        folder.rmdir()
        pytest.skip("mounting a small file system takes root's rights")

    def fill():
        (folder / "filler").write_bytes(bytes(shutil.disk_usage(folder).free))
        return folder / "filler"

    try:
        yield folder / "s", fill
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


@contextmanager
def size_limit(path):
    """As `ulimit -f`, or a quota: free bytes are plenty, but this file may grow by 10 only."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_file_system_is_one_line_and_goes_on_when_there_is_room():
    with full_disk() as (directory, fill), Ledger(directory) as ledger:
        ledger.append("began", budget={})
        filler = fill()
        assert shutil.disk_usage(directory).free == 0  # the fault is there
        recorded = ledger.path.read_bytes()
        with pytest.raises(UserError) as raised:
            ledger.append("screened", rows=["x" * 5000])
        said = str(raised.value)
        assert str(ledger.path) in said and "No space left" in said and "\n" not in said
        assert "0 bytes free" in said and "bytes needed" in said and "make room" in said
        assert ledger.path.read_bytes() == recorded  # not a byte of what did not fit
        filler.unlink()
        ledger.append("screened", rows=["x" * 5000])
        assert [e["event"] for e in read_events(ledger.path)] == ["began", "screened"]


def test_a_write_that_breaks_off_within_a_line_leaves_none_of_it(tmp_path):
    """A neighbour: part of the line is on disk before the limit says no."""
    with Ledger(tmp_path / "s") as ledger:
        ledger.append("began", budget={})
        recorded = ledger.path.read_bytes()
        with size_limit(ledger.path), pytest.raises(UserError, match="File too large"):
            ledger.append("ended", why="stop", reason="a longer line than what is left")
        assert ledger.path.read_bytes() == recorded
        ledger.append("ended", why="stop", reason="later")
        assert [e["event"] for e in read_events(ledger.path)] == ["began", "ended"]


def test_a_device_that_never_has_room(tmp_path):
    """A neighbour: the file can be neither grown nor cut, as on a device."""
    directory = tmp_path / "s"
    directory.mkdir()
    with Ledger(directory) as ledger:
        ledger._file.close()
        ledger._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115 — the ledger closes it
        with pytest.raises(UserError, match="No space left on device"):
            ledger.append("began", budget={})
    assert not (directory / LEDGER_NAME).read_bytes()
