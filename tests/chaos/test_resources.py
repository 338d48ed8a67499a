"""What watches the tests of faults for things left behind sees what is left behind."""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil
import pytest
from resources import held, nothing_is_left

FOLDER = Path(tempfile.gettempdir()) / "pytest-of-"
# Starts another process in a session of its own, says its number and ends.
PARENT = """
import subprocess, sys
nowhere = subprocess.DEVNULL
words = [sys.executable, "-c", "import time; time.sleep(100)"]
print(subprocess.Popen(words, start_new_session=True, stdout=nowhere, stderr=nowhere).pid)
"""


def test_a_process_whose_parent_is_gone_is_still_one_that_was_left(tmp_path):
    before = held(FOLDER)
    said = subprocess.run(
        [sys.executable, "-c", PARENT], capture_output=True, text=True, check=True
    )
    orphan = psutil.Process(int(said.stdout))
    assert os.getpid() not in [parent.pid for parent in orphan.parents()]
    ((line,),) = held(FOLDER).beyond(before).values()
    assert line.startswith(f"{orphan.pid} ")
    orphan.kill()
    while psutil.pid_exists(orphan.pid) and orphan.status() != psutil.STATUS_ZOMBIE:
        pass
    assert held(FOLDER).beyond(before) == {}


def test_files_threads_and_shared_memory(tmp_path):
    before = held(FOLDER)
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="left")
    thread.start()
    shared = Path("/dev/shm") / f"tokenpool-test-{os.getpid()}"
    shared.write_bytes(b"x")
    with (tmp_path / "open").open("w"):
        found = held(FOLDER).beyond(before)
    over.set(), thread.join(), shared.unlink()
    assert found["open_files"] == [str(tmp_path / "open")]
    assert found["shared_memory"] == [str(shared)] and found["threads"][0].endswith(" left")
    assert held(FOLDER).beyond(before) == {}


class Request:
    """A test with a mark, as pytest hands it to a fixture."""

    def __init__(self, *marks):
        self.node, self._marks = self, marks

    def get_closest_marker(self, name):
        return name if name in self._marks else None


@pytest.mark.parametrize("marks", [["fault"], ["chaos"], []])
def test_each_test_of_a_fault_is_watched(tmp_path, monkeypatch, marks):
    monkeypatch.setattr("resources._PATIENCE", 0.0)
    watching = nothing_is_left._get_wrapped_function()(Request(*marks))
    next(watching)
    with (tmp_path / "open").open("w"):
        if marks:
            with pytest.raises(AssertionError, match=r"left behind: .*open_files"):
                next(watching)
        else:
            assert next(watching, "over") == "over"
