"""The disk of a ledger is full, for real: one line, nothing half-written, and it goes on later."""

import pickle
import resource
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import partial

import pytest
from disks import small_disk

from pipelines.errors import UserError
from pipelines.search.ledger import Ledger, read_events
from pipelines.search.recorder import Recorder
from pipelines.search.state import SearchState
from pipelines.storage.room import (
    DiskFull,
    UntilRoom,
    file_system,
    lacks_room,
    shortage,
    wait_for_room,
)
from pipelines.storage.search_files import Search
from pipelines.train import checkpoint_room, life_signs


@contextmanager
def size_limit(path):
    """As `ulimit -f`, or a quota: free bytes are plenty, but this file may grow by 10 only."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.fault("full disk at a ledger's write")
def test_a_full_file_system_is_one_line_and_goes_on_when_there_is_room():
    with small_disk("64k") as disk, Ledger(Search(disk.folder, "s")) as ledger:
        ledger.append("began", budget={})
        disk.fill()
        recorded = ledger.path.read_bytes()
        with pytest.raises(DiskFull) as raised:
            ledger.append("screened", rows=["x" * 5000])
        said = str(raised.value)
        assert str(ledger.path) in said and "No space left" in said and "\n" not in said
        assert "0 bytes free" in said and "bytes needed" in said and "make room" in said
        assert raised.value.shortage.startswith(f"the disk at {disk.folder} is full: 50")
        assert raised.value.shortage.endswith("bytes missing")
        assert ledger.path.read_bytes() == recorded  # not a byte of what did not fit
        disk.clear()
        ledger.append("screened", rows=["x" * 5000])
        assert [e["event"] for e in read_events(ledger.path)] == ["began", "screened"]


class Patience:
    """Waiting, by a clock of our own; after so many pauses something happens."""

    def __init__(self, minutes, pauses, happens):
        self.now, self.pauses, self.said, self.ended = 0.0, pauses, [], False
        self.happens = happens
        self.wait = UntilRoom(
            self.said.append, lambda: self.ended, minutes, lambda: self.now, self.sleep
        )

    def sleep(self, seconds):
        self.now += seconds
        self.pauses -= 1
        if self.pauses == 0:
            self.happens()


def big_event(recorder):
    recorder.add("screened", weights="base", rows=[], note="x" * 5000)


def test_a_recorder_waits_for_room_and_says_so_once():
    with small_disk("64k") as disk, Ledger(Search(disk.folder, "s")) as ledger:
        recorder = Recorder(ledger, SearchState("s"))
        patience = Patience(15, 7, disk.clear)
        recorder.until_room = patience.wait
        disk.fill()
        with pytest.raises(DiskFull):  # figures of the machine are not worth the wait
            recorder.add_all([("system", {"metrics": {"x" * 5000: 1.0}})], wait=False)
        big_event(recorder)
        waits, goes_on = patience.said
        assert waits.startswith(f"the disk at {disk.folder} is full") and "15 min at most" in waits
        assert goes_on == "there is room again: going on"
        assert [e["event"] for e in read_events(ledger.path)] == ["screened"]
        big_event(recorder)
        assert len(patience.said) == 2


@pytest.mark.parametrize("end", ["deadline", "stop"])
def test_nobody_waits_for_ever(end):
    with small_disk("64k") as disk, Ledger(Search(disk.folder, "s")) as ledger:
        recorder = Recorder(ledger, SearchState("s"))
        patience = Patience(15, 7, lambda: setattr(patience, "ended", end == "stop"))
        recorder.until_room = patience.wait
        disk.fill()
        with pytest.raises(DiskFull, match="make room there"):
            big_event(recorder)
        assert patience.now == (15 * 60 if end == "deadline" else 14)
        waited = patience.now
        with pytest.raises(DiskFull):
            big_event(recorder)  # of the end
        assert patience.now == waited and len(patience.said) == 1


@pytest.mark.fault("full disk at a checkpoint's write")
def test_a_part_of_a_checkpoint_is_not_begun_before_there_is_room(monkeypatch):
    with small_disk("8m") as disk:
        job, pauses = disk.folder / "job", []
        (job / "epoch-0001").mkdir(parents=True)
        (job / "epoch-0001" / "weights").write_bytes(bytes(1_000_000))
        written = []

        def write(folder):
            written.append(True)
            (folder / "weights").write_bytes(bytes(1_000_000))

        def sleep(seconds):
            assert life_signs.signs.read().waits.startswith(f"the disk at {disk.folder} is full: ")
            assert "2.0 MB needed, 0 bytes free, 2.0 MB missing" in life_signs.signs.read().waits
            pauses.append(seconds)
            if len(pauses) == 3:
                disk.clear()

        monkeypatch.setattr(
            checkpoint_room, "wait_for_room", partial(wait_for_room, sleep=sleep, clock=lambda: 0.0)
        )
        disk.fill()
        with checkpoint_room.part_of_checkpoint(write, job) as part:
            assert (part / "weights").stat().st_size == 1_000_000
        assert written == [True] and len(pauses) == 3
        assert life_signs.signs.read().waits == ""
        # The same where the temporary folder is the full one: nothing is written in vain.
        monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
        disk.fill()
        monkeypatch.setattr(
            checkpoint_room, "wait_for_room", partial(wait_for_room, sleep=lambda _: None)
        )
        with (
            pytest.raises(DiskFull, match=r"make room there; waited 0 min"),
            checkpoint_room.part_of_checkpoint(write, job, minutes=0),
        ):
            pass
        assert written == [True]


@pytest.mark.fault("disk without room for another file")
def test_a_disk_full_of_files_and_a_place_that_is_not_there_yet():
    with small_disk("64k,nr_inodes=3") as disk:
        for name in range(2):
            (disk.folder / str(name)).touch()
        with pytest.raises(OSError, match="No space left") as raised:
            (disk.folder / "one too many").touch()
        assert lacks_room(raised.value)
        assert "no room for another file (inodes)" in shortage(disk.folder / "a" / "b", 10)
        assert file_system(disk.folder / "a" / "b") == disk.folder


def test_a_full_disk_travels_between_processes_with_all_it_says():
    error = pickle.loads(pickle.dumps(DiskFull("whole line", "what is missing")))
    assert (str(error), error.shortage, error.exit_code) == ("whole line", "what is missing", 1)


@pytest.mark.fault("write to the ledger broken off within a line")
def test_a_write_that_breaks_off_within_a_line_leaves_none_of_it(tmp_path):
    """A neighbour: part of the line is on disk before the limit says no."""
    with Ledger(Search(tmp_path, "s")) as ledger:
        ledger.append("began", budget={})
        recorded = ledger.path.read_bytes()
        with size_limit(ledger.path), pytest.raises(UserError, match="File too large"):
            ledger.append("ended", why="stop", reason="a longer line than what is left")
        assert ledger.path.read_bytes() == recorded
        ledger.append("ended", why="stop", reason="later")
        assert [e["event"] for e in read_events(ledger.path)] == ["began", "ended"]


def test_a_device_that_never_has_room(tmp_path):
    """A neighbour: the file can be neither grown nor cut, as on a device."""
    search = Search(tmp_path, "s")
    with Ledger(search) as ledger:
        ledger._file.close()
        ledger._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115 — the ledger closes it
        with pytest.raises(UserError, match="No space left on device"):
            ledger.append("began", budget={})
    assert not search.ledger.read_bytes()


@pytest.mark.fault("read-only disk")
def test_a_disk_that_takes_no_writes_is_named_before_and_after_a_search_has_begun():
    with small_disk("64k") as disk:
        disk.remount("ro")
        with pytest.raises(UserError, match=r"Read-only file system.*set storage to a folder"):
            Ledger(Search(disk.folder, "s"))
        disk.remount("rw")
        with Ledger(Search(disk.folder, "s")) as ledger:
            ledger.append("began", budget={})
        disk.remount("ro")
        with pytest.raises(UserError, match="Read-only file system") as raised:
            Ledger(Search(disk.folder, "s"))
        assert "\n" not in str(raised.value) and str(disk.folder) in str(raised.value)
        assert [e["event"] for e in read_events(Search(disk.folder, "s").ledger)] == ["began"]


@pytest.mark.fault("read-only disk")
@pytest.mark.parametrize("how", ["prepare", "what a library raises"])
def test_a_command_on_a_disk_that_takes_no_writes_ends_in_one_line(how):
    """Ray Train marks its folder before anything else, through pyarrow."""
    library = (
        "import sys\nfrom pathlib import Path\nfrom pipelines import cli\n"
        "from cluster.ray_private import StorageContext\n"
        "cli.app = lambda: StorageContext(Path(sys.argv[1]), 'job')\ncli.main()"
    )
    with small_disk("64k") as disk:
        disk.remount("ro")
        words = (
            ["-m", "pipelines.cli", "prepare", "digits"] if how == "prepare" else ["-c", library]
        )
        words = [sys.executable, *words, str(disk.folder / "there")]
        ended = subprocess.run(words, capture_output=True, text=True, check=False)
        assert ended.returncode != 0
        (line,) = ended.stderr.splitlines()
        assert str(disk.folder) in line and "Read-only file system" in line and "Errno" not in line
