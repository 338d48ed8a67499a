"""Worker processes that are there at once: forked from a small server that imports beforehand.

A process pool of the standard library starts its workers when the first task comes, each imports
everything anew (and the program's main module with it), and ending them takes as long again. Here
one server imports while the caller is still listing its files, and forks as many workers as there
turn out to be work for. A fork of the caller itself would not do: it has threads (progress bars,
torch), and a child may start out deadlocked on their locks.

Nothing outlives the caller: the kernel kills the server with it, and the workers with the server.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, NoReturn, TypeVar

Task = TypeVar("Task")
Call = Callable[..., None]

_PR_SET_PDEATHSIG = 1
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from pipelines.data.processes import serve; serve(*map(json.loads, sys.argv[2:]))"
)
# Every core has a process of its own: threads of the numeric libraries would only be in the way.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class WorkerDiedError(RuntimeError):
    """A worker or the server was killed from outside, or could not start."""


class WorkerProcesses:
    """A server, started here and now, and the workers that `run` forks from it."""

    def __init__(self, modules: list[str]) -> None:
        """Start the server; it imports `modules`, if they are there, while the caller goes on."""
        self._control, theirs = socket.socketpair()
        argument = [
            json.dumps(value) for value in (sys.path, theirs.fileno(), os.getpid(), modules)
        ]
        # Ctrl-C is the caller's to handle; from here on, and not only once the server has started.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._server = subprocess.Popen(
                [sys.executable, "-c", _START, *argument],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | _ONE_THREAD,
            )
        except BaseException:
            self._control.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self._workers: list[Connection] = []

    def run(
        self, count: int, call: Call, tasks: Iterable[tuple[Task, tuple[Any, ...]]]
    ) -> Iterator[Task]:
        """Call `call(*arguments)` for each (task, arguments) on `count` workers.

        A worker gets its next task when it has finished one: `tasks` is not run through in advance.

        Yields:
            Each task as it is done, in the order of finishing.

        Raises:
            WorkerDiedError: a worker was killed.
            Exception: what `call` raised.
        """
        self._workers += [self._fork() for _ in range(count - len(self._workers))]
        waiting = iter(tasks)
        idle = self._workers[:count]
        running: dict[Connection, Task] = {}
        done: list[Task] = []
        while True:
            while idle and (following := next(waiting, None)) is not None:
                task, arguments = following
                worker = idle.pop()
                self._send(worker, (call, arguments))
                running[worker] = task
            yield from done  # after the workers have theirs: whoever is told may take his time
            if not running:
                return
            finished = [worker for worker in wait(list(running)) if isinstance(worker, Connection)]
            for worker in finished:
                error = self._receive(worker)
                if error is not None:
                    raise error
            idle += finished
            done = [running.pop(worker) for worker in finished]

    def _fork(self) -> Connection:
        ours, theirs = Pipe()
        try:
            socket.send_fds(self._control, [b"1"], [theirs.fileno()])
        except OSError:
            raise WorkerDiedError("the server of workers is gone") from None
        finally:
            theirs.close()
        return ours

    def _send(self, worker: Connection, message: tuple[Call, tuple[Any, ...]]) -> None:
        try:
            worker.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise WorkerDiedError("a worker is gone") from None

    def _receive(self, worker: Connection) -> Exception | None:
        try:
            return worker.recv()
        except (EOFError, ConnectionResetError):
            raise WorkerDiedError("a worker is gone") from None

    def close(self) -> None:
        """End the workers, also amid a task, and the server; returns when they are gone."""
        self._control.close()
        if not self._workers:
            self._server.kill()  # it has no children yet, and may still be importing
        self._server.wait()
        for worker in self._workers:
            worker.close()


def serve(control: int, parent: int, modules: list[str]) -> NoReturn:
    """What the server does: import, then fork a worker for each connection that is sent to it."""
    _die_with(parent)
    for name in modules:
        with suppress(ImportError):  # whoever needs it says so better
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is shared with the workers stays shared
    requests = socket.socket(fileno=control)
    workers: list[int] = []
    while True:
        asked, descriptors, _, _ = socket.recv_fds(requests, 1, 1)
        if not asked:
            break
        pid, server = 0, os.getpid()
        pid = os.fork()
        if pid == 0:
            requests.close()
            _die_with(server)
            _work(Connection(descriptors[0]))
        os.close(descriptors[0])
        workers.append(pid)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)  # not yet waited for, so the number is still its own
    for pid in workers:
        os.waitpid(pid, 0)
    os._exit(0)


def _die_with(parent: int) -> None:
    """Workers must not outlive a killed `prepare`: the next one would race them for the shards."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _work(connection: Connection) -> NoReturn:
    while True:
        error: Exception | None = None
        try:
            message = connection.recv_bytes()
        except EOFError:
            os._exit(0)
        try:
            call, arguments = pickle.loads(message)
            call(*arguments)
        except Exception as problem:
            problem.add_note(traceback.format_exc())
            error = problem
        try:
            reply = pickle.dumps(error)
            pickle.loads(reply)
        except Exception:
            reply = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
        connection.send_bytes(reply)
