"""A small pool of decoding threads that cannot fail quietly.

FFCV's own loader hangs the training for ever when its thread dies, and leaks a thread when an
epoch is left early. Here a dead thread is noticed within a second, an exception is raised in the
thread that waits for the result, and closing joins what was started.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

_POLL_SECONDS = 0.5
_open_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


class LoaderError(RuntimeError):
    """The loader cannot deliver: a decoding thread died, stalled, or met undecodable bytes."""


class WorkerPool:
    """`num_threads` daemon threads that run submitted calls in order of submission."""

    def __init__(self, num_threads: int, *, stall_seconds: float = 300.0) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[None], Callable[[], None]] | None] = (
            queue.SimpleQueue()
        )
        self._stall_seconds = stall_seconds
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"tokenpool-decode-{i}", daemon=True)
            for i in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()
        _open_pools.add(self)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                call()
            except BaseException as error:
                future.set_exception(error)
                if not isinstance(error, Exception):
                    return  # told to exit: `wait` finds the thread dead
            else:
                future.set_result(None)
            # Held across the wait for the next task, these would keep a whole batch alive.
            del task, future, call

    def submit(self, call: Callable[[], None]) -> Future[None]:
        """Queue one call."""
        future: Future[None] = Future()
        self._tasks.put((future, call))
        return future

    def wait(self, future: Future[None]) -> None:
        """Wait for one call.

        Raises:
            LoaderError: the call failed, a thread has died, or nothing came within the stall limit.
        """
        deadline = time.monotonic() + self._stall_seconds
        while True:
            try:
                future.result(timeout=_POLL_SECONDS)
                return
            except FutureTimeout:
                dead = [thread.name for thread in self._threads if not thread.is_alive()]
                if dead and not future.done():
                    raise LoaderError(f"the decoding thread {dead[0]} died") from None
                if time.monotonic() > deadline:
                    raise LoaderError(
                        f"no decoded batch within {self._stall_seconds:.0f} s: "
                        "is the storage of the prepared data reachable?"
                    ) from None
            except LoaderError:
                raise
            except BaseException as error:
                raise LoaderError(f"decoding failed: {error}") from error

    def close(self) -> None:
        """Drop what is queued, let running calls end, join the threads. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        while True:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                break
            if task is not None:
                task[0].cancel()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(timeout=10)


@atexit.register
def _close_open_pools() -> None:
    """A thread still inside native code when the interpreter goes away aborts the process."""
    for pool in list(_open_pools):
        pool.close()
