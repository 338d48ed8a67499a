"""What Ray leaves on a disk, with folders of our own in its place."""

import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
from ray.exceptions import RaySystemError

from cluster.ray_folder import session_folder
from pipelines.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from cluster.ray_folder import session_folder
with session_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def make(tmp_path):
    def made(name, old=False):
        folder = tmp_path / f"session_2026-01-0{name}"
        (folder / "logs").mkdir(parents=True)
        (folder / "logs" / "raylet.out").write_text("a log")
        if old:
            os.utime(folder, (0, 0))
        return folder

    return made


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_it_is_deleted_when_the_instance_ends(make, error):
    folder = make(1)
    with pytest.raises(error) if error else nullcontext(), session_folder(folder):
        assert folder.exists()
        if error:
            raise error
    assert not folder.exists()


@pytest.mark.parametrize("error", [RaySystemError("it ended"), UserError("training t0 failed")])
def test_what_ray_wrote_is_kept_where_something_failed(make, error):
    folder = make(1)
    with pytest.raises(type(error)), session_folder(folder):
        raise error
    assert (folder / "logs" / "raylet.out").read_text() == "a log"


def test_the_folder_of_a_ray_that_nobody_holds_is_left(make):
    """One of an earlier version of this program, or of a `ray start`, that has run for days."""
    used = make(1, old=True)
    code = "import time; time.sleep(100)"
    raylet = subprocess.Popen([sys.executable, "-c", code, f"--session-dir={used}"])
    try:
        with session_folder(make(2)):
            assert used.exists()
    finally:
        raylet.kill()
        raylet.wait()
    with session_folder(make(3)):
        assert not used.exists()


def test_what_killed_processes_left_is_deleted_after_a_day(make):
    left, lately, held = make(1, old=True), make(2), make(3)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(held)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        os.utime(held, (0, 0))
        with session_folder(make(4)):
            assert not left.exists() and lately.exists() and held.exists()
    finally:
        holder.kill()
        holder.communicate()
    with session_folder(make(5)):
        assert not held.exists() and lately.exists()
