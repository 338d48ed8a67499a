import os
import signal
import tempfile
import time

import pytest

from pipelines.train.checkpoint import (
    JobProgress,
    damage,
    read_progress,
    seal,
    write_progress,
)
from pipelines.train.checkpoint_room import part_of_checkpoint
from pipelines.train.job_folder import PathFolder
from pipelines.train.reports import Report

REPORT = Report(epoch=3, top1_minival=0.5)


@pytest.fixture
def folder(tmp_path):
    def make(epoch, ranks=2):
        path = tmp_path / "job" / f"epoch-{epoch:04d}"
        for rank in range(ranks):
            part = tmp_path / "parts" / f"{epoch}-{rank}"
            (part / "engine").mkdir(parents=True)
            (part / "engine" / f"rank{rank}.pt").write_bytes(bytes([rank]) * 100)
            if rank == 0:
                write_progress(part, JobProgress(epoch, ranks, 1.5, REPORT))
            seal(part, rank)
            for file in part.rglob("*"):
                if file.is_file():
                    target = path / file.relative_to(part)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read_bytes())
        return path

    return make


def test_a_whole_checkpoint_is_whole(folder):
    path = folder(3)
    assert damage(path) is None
    assert read_progress(path) == JobProgress(3, 2, 1.5, REPORT)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("engine/rank1.pt", "missing"),
        ("state.json", "state.json"),
        ("manifest-rank1.json", "manifest-rank1.json"),
    ],
)
@pytest.mark.fault("checkpoint with a part missing")
def test_a_missing_part_is_named(folder, name, what):
    path = folder(3)
    (path / name).unlink()
    assert what in damage(path)


@pytest.mark.parametrize("name", ["state.json", "manifest-rank1.json"])
@pytest.mark.parametrize("content", [b"", b"null", b"[1]", b'{"a": 1}', b"\0\0", b"\x80"])
@pytest.mark.fault("checkpoint with a part missing")
def test_what_is_no_description_is_named(folder, name, content):
    path = folder(3)
    (path / name).write_bytes(content)
    assert f"{name} is missing or torn" == damage(path)
    assert PathFolder(path.parent).score(path.name) in (None, 0.5)


@pytest.mark.fault("checkpoint with a flipped bit")
def test_one_flipped_bit_is_seen(folder):
    path = folder(3)
    file = path / "engine/rank0.pt"
    content = bytearray(file.read_bytes())
    content[50] ^= 1
    file.write_bytes(content)
    assert damage(path) == "engine/rank0.pt was altered"


@pytest.mark.fault("checkpoint damaged: the one before is used")
def test_a_damaged_checkpoint_falls_back_to_the_one_before(folder, tmp_path):
    older, newer = folder(1), folder(2)
    job = PathFolder(tmp_path / "job")
    assert job.newest_undamaged(job.checkpoints()) == newer
    (newer / "engine/rank1.pt").write_bytes(b"torn")
    assert job.newest_undamaged(job.checkpoints()) == older
    (older / "state.json").write_text("{")
    assert job.newest_undamaged(job.checkpoints()) is None


@pytest.mark.fault("worker killed amid a checkpoint: its temporary folder is deleted")
def test_temporary_folders_of_processes_that_were_killed_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        with part_of_checkpoint(lambda folder: (folder / "weights").touch(), None):
            os.write(theirs, b"x")
            time.sleep(100)
    os.read(ours, 1)
    (left,) = tmp_path.iterdir()
    os.utime(left, (0, 0))
    with part_of_checkpoint(lambda folder: None, None) as part:
        assert {path.name for path in tmp_path.iterdir()} == {left.name, part.name}  # it lives
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.utime(left, (0, 0))
        assert (left / "weights").exists()
        with part_of_checkpoint(lambda folder: None, None) as another:
            assert {path.name for path in tmp_path.iterdir()} == {part.name, another.name}
    assert list(tmp_path.iterdir()) == []
    os.close(ours), os.close(theirs)
