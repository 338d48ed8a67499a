"""What a test must give back: processes, threads, files, shared memory, placement groups."""

import contextlib
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

# Made once for all tests of a run, by Python itself.
_HELPERS = ("multiprocessing.forkserver", "multiprocessing.resource_tracker")
_PATIENCE = 90.0  # seconds; Ray's agents take a minute to end
# Inherited by whatever a test starts, also by what outlives its parent and is nobody's child then.
MARK = "TOKENPOOL_TESTS_OF"
os.environ[MARK] = str(os.getpid())


@dataclass
class Held:
    """What this process and those it has started hold now, by readable names."""

    processes: set[str] = field(default_factory=set)
    threads: set[str] = field(default_factory=set)
    open_files: set[str] = field(default_factory=set)
    shared_memory: set[str] = field(default_factory=set)
    placement_groups: set[str] = field(default_factory=set)

    def beyond(self, before: "Held") -> dict[str, list[str]]:
        """What is held now and was not before."""
        found = {kind: sorted(getattr(self, kind) - getattr(before, kind)) for kind in vars(self)}
        return {kind: names for kind, names in found.items() if names}


def held(folder: Path) -> Held:
    """What is held; of open files those in the tests' folder."""
    now = Held()
    for child in {*psutil.Process().children(recursive=True), *orphans()}:
        with contextlib.suppress(psutil.NoSuchProcess):
            line = " ".join(child.cmdline())
            if child.status() != psutil.STATUS_ZOMBIE and not any(h in line for h in _HELPERS):
                now.processes.add(f"{child.pid} {line[:80]}")
    now.threads = {
        f"{thread.ident} {thread.name}"
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.current_thread()
    }
    now.open_files = {
        file.path for file in psutil.Process().open_files() if file.path.startswith(str(folder))
    }
    now.shared_memory = {str(path) for path in Path("/dev/shm").iterdir()}
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        groups = ray.util.placement_group_table().items()
        now.placement_groups = {key for key, row in groups if row["state"] != "REMOVED"}
    return now


def orphans() -> list[psutil.Process]:
    """Processes of this machine that were started by tests of this process, whoever's they are."""
    mark, found = f"{MARK}={os.getpid()}\0".encode(), []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                if mark in (process / "environ").read_bytes():
                    found.append(psutil.Process(int(process.name)))
    return found


def used(name: str) -> bool:
    """Whether a process of this machine holds a file: another run's is nothing of ours."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if name in (process / "maps").read_text():
                    return True
                if any(str(f.readlink()) == name for f in (process / "fd").iterdir()):
                    return True
    return False


@pytest.fixture(autouse=True)
def nothing_is_left(request):
    """After a fault all is given back that was held before it."""
    node = request.node
    if not (node.get_closest_marker("fault") or node.get_closest_marker("chaos")):
        yield
        return
    folder = Path(tempfile.gettempdir()) / "pytest-of-"
    before = held(folder)
    yield
    deadline = time.monotonic() + _PATIENCE
    while left := held(folder).beyond(before):
        before.shared_memory |= {name for name in left.get("shared_memory", ()) if used(name)}
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.5)
