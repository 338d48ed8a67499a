"""A job's disks: a storage that turns read-only, a full temporary folder, no shared memory."""

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from commands import Command
from disks import small_disk

from pipelines.train.job_folder import PathFolder

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3000)]

EPOCHS = 8
TRAIN = {
    "name": "job",
    "storage": "runs",
    "data": {"path": "digits", "image_size": 32, "loader": "torchvision"},
    "model": {"patch_size": 8, "depth": 2},
    "width": {"width": 32, "heads": 2},
    "train": {"epochs": EPOCHS, "batch_size": 64, "lr": 0.003, "warmup_epochs": 0.5},
    "workers": {"num_workers": 2, "cpus_per_worker": 0.9, "max_failures": 0},
}
LIBRARIES = ("Traceback", "Errno", "ray.", "sqlite")


@pytest.fixture
def begin(tmp_path):
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(TRAIN))
    begun = [Command("prepare", "digits", "digits", cwd=tmp_path)]
    assert begun[0].end() == 0

    def start(storage="runs", **options):
        words = ["train", "train.yaml", "--set", f"storage={storage}"]
        begun.append(Command(*words, cwd=tmp_path, **options))
        return begun[-1]

    yield start
    for command in begun:
        command.kill()


def check(command, storage):
    """It is trained to its end, each epoch once, and no library has said anything."""
    assert command.end() == 0, command.text
    reports = PathFolder(Path(storage) / "trains" / "job").reports()
    assert [report.epoch for report in reports] == list(range(1, EPOCHS + 1))
    assert "(restart" not in command.text
    assert not [word for word in LIBRARIES if word in command.text], command.text


def test_a_storage_that_turns_read_only_is_named_and_what_was_done_is_kept(begin, told):
    with small_disk("64m") as disk:
        storage = f"{disk.folder}/runs"
        command = begin(storage)
        command.wait_for("epoch 2/")
        remount(disk, "ro")
        assert command.end() == 1, command.text
        assert "Read-only file system" in command.text
        assert not [word for word in LIBRARIES if word in command.text], command.text
        done = PathFolder(Path(storage) / "trains" / "job").reports()
        assert 2 <= len(done) < EPOCHS
        refused = begin(storage)
        assert refused.end() != 0 and "Traceback" not in refused.text, refused.text
        disk.remount("rw")
        again = begin(storage)
        check(again, storage)
        assert PathFolder(Path(storage) / "trains" / "job").reports()[: len(done)] == done
        told("read-only disk")


def remount(disk, how):
    """Once nobody writes a file there: until then the kernel refuses."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return disk.remount(how)
        except subprocess.CalledProcessError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_temporary_folder_that_is_full_is_waited_for(begin, tmp_path, told):
    """Ray keeps its own there, too: its logs, and what it spills."""
    with small_disk("512m") as disk:
        command = begin(env={"TMPDIR": str(disk.folder)})
        command.wait_for("epoch 2/")
        count = len(command.lines)
        disk.fill()
        found = command.wait_for(rf"waits: the disk at {disk.folder} is full: .*", start=count)
        assert re.search(r"[\d.]+ MB needed, .* free, [\d.]+ MB missing", found[0])
        at = time.monotonic()
        disk.clear()
        command.wait_for("epoch .*", start=len(command.lines))
        told("full disk of temporary files, Ray's too", seconds=time.monotonic() - at)
        check(command, tmp_path / "runs")


def test_shared_memory_without_room_costs_speed_only(begin, tmp_path, told):
    """A `/dev/shm` of the command's own, as a container has a small one."""
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode or not shutil.which("dd"):
        pytest.skip("a mount of its own takes root's rights")
    fill = "dd if=/dev/zero of=/dev/shm/filler bs=4096 2>/dev/null"
    mount = f"mount -t tmpfs -o size=1m none /dev/shm && {{ {fill}; df /dev/shm | grep -q 100%; }}"
    before = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    check(begin(before=before), tmp_path / "runs")
    told("full /dev/shm")
