"""Workers of prepare: what they are told, what becomes of their errors, and that none stays."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from pipelines.data.processes import WorkerDiedError, WorkerProcesses
from pipelines.errors import UserError


def note_down(folder: Path, name: str, seconds: float = 0.0) -> None:
    time.sleep(seconds)
    (folder / name).write_text(str(os.getpid()))


def refuse(error: Exception) -> None:
    raise error


def refuse_with_what_cannot_be_pickled() -> None:
    raise ValueError("odd", lambda: None)


def refuse_as_users_are(message: str) -> None:
    raise UserError(message, exit_code=1)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"  # dead, but nobody has asked for its exit code


def wait_until(condition, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_every_task_is_done_once_by_as_many_workers_as_asked_for(tmp_path):
    tasks = [(i, (tmp_path, str(i), 0.05)) for i in range(12)]
    with closing(WorkerProcesses([])) as workers:
        done = list(workers.run(3, note_down, tasks))
    assert sorted(done) == list(range(12))
    pids = {int((tmp_path / str(i)).read_text()) for i in range(12)}
    assert len(pids) == 3 and os.getpid() not in pids
    assert all(gone(pid) for pid in pids)


def test_no_task_is_looked_at_before_a_worker_is_free(tmp_path):
    """A listing of millions of files is not run through in advance."""
    looked_at = []

    def tasks():
        for i in range(20):
            looked_at.append(i)
            yield i, (tmp_path, str(i))

    with closing(WorkerProcesses([])) as workers:
        for count, _ in enumerate(workers.run(2, note_down, tasks()), start=1):
            assert len(looked_at) <= count + 4
    assert len(looked_at) == 20


@pytest.mark.parametrize(
    ("call", "arguments", "kind", "message"),
    [
        (refuse, (OSError(28, "No space left on device", "/x"),), OSError, "No space left"),
        (refuse, (EOFError("short"),), EOFError, "short"),
        (refuse_with_what_cannot_be_pickled, (), RuntimeError, "ValueError"),
        (refuse_as_users_are, ("mend it",), UserError, "mend it"),
    ],
)
def test_an_error_of_a_worker_is_raised_here(call, arguments, kind, message):
    with closing(WorkerProcesses([])) as workers, pytest.raises(kind, match=message) as caught:
        list(workers.run(2, call, [(0, arguments)]))
    if kind is OSError:
        assert caught.value.errno == 28 and caught.value.filename == "/x"


def test_a_killed_worker_is_noticed_and_the_others_end(tmp_path):
    with closing(WorkerProcesses([])) as workers:
        list(workers.run(2, note_down, [(i, (tmp_path, str(i), 0.2)) for i in range(2)]))
        pids = [int((tmp_path / str(i)).read_text()) for i in range(2)]
        with pytest.raises(WorkerDiedError):
            list(workers.run(2, die, [(0, ())]))
    assert all(gone(pid) for pid in pids)


def test_a_server_killed_before_the_work_is_noticed(tmp_path):
    with closing(WorkerProcesses([])) as workers:
        workers._server.kill()
        workers._server.wait()
        with pytest.raises(WorkerDiedError):
            list(workers.run(2, note_down, [(0, (tmp_path, "0"))]))


def test_closing_amid_a_task_does_not_wait_for_it(tmp_path):
    workers = WorkerProcesses([])
    running = workers.run(2, note_down, [(0, (tmp_path, "0")), (1, (tmp_path, "1", 3600.0))])
    assert next(running) == 0
    start = time.monotonic()
    workers.close()
    assert time.monotonic() - start < 60
    assert workers._server.returncode == 0


def test_ctrl_c_does_not_reach_the_workers(tmp_path):
    with closing(WorkerProcesses([])) as workers:
        os.kill(workers._server.pid, signal.SIGINT)
        assert list(workers.run(1, note_down, [(0, (tmp_path, "0"))])) == [0]


@pytest.mark.parametrize("moment", ["at work", "at once"])
def test_nothing_outlives_a_killed_caller(tmp_path, moment):
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.pipelines.data import test_processes as t\n"
        "workers = t.WorkerProcesses([]); folder = Path(sys.argv[1])\n"
        "(folder / 'server').write_text(str(workers._server.pid))\n"
        "tasks = [(0, (folder, 'a')), (1, (folder, 'b')), (2, (folder, 'c', 3600.0))]\n"
        "list(workers.run(2, t.note_down, tasks))\n"
    )
    root = Path(__file__).parents[3]
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=root)
    names = ["server"] if moment == "at once" else ["server", "a", "b"]
    try:
        assert wait_until(lambda: all(_number(tmp_path / name) for name in names))
    finally:
        process.kill()
        process.wait()
    pids = [_number(tmp_path / name) for name in names]
    assert wait_until(lambda: all(gone(pid) for pid in pids))


def _number(path: Path) -> int:
    try:
        return int(path.read_text() or 0)
    except FileNotFoundError:
        return 0
