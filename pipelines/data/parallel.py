"""Shards made by all cores, or by a Ray cluster; one result after the other, as they finish."""

import ctypes
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from pipelines.data.options import PrepareOptions
from pipelines.data.shards import make_shard, write_shard
from pipelines.data.sources.base import Mode, Unit
from pipelines.errors import UserError

Task = tuple[int, Unit]
_PR_SET_PDEATHSIG = 1


def make_shards(
    tasks: list[Task],
    folder: Path,
    options: PrepareOptions,
    mode: Mode,
    num_classes: int,
) -> Iterator[Task]:
    """Make every shard and put it in `folder`; yields each task as it is done.

    Raises:
        UserError: a worker process was killed, or the Ray cluster failed.
        OSError: no space, and the like.
    """
    if options.address is not None:
        yield from _on_ray(tasks, folder, options, mode, num_classes)
        return
    workers = min(options.processes, len(tasks))
    if workers <= 1:
        for number, unit in tasks:
            write_shard(folder, number, *make_shard(unit, options, mode, num_classes))
            yield number, unit
        return
    yield from _on_processes(tasks, folder, options, mode, num_classes, workers)


def _on_processes(
    tasks: list[Task],
    folder: Path,
    options: PrepareOptions,
    mode: Mode,
    num_classes: int,
    workers: int,
) -> Iterator[Task]:
    # Spawned: a fork of a process with threads (progress bars, torch) may start out deadlocked.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _die_with_parent, (os.getpid(),))
    try:
        waiting = iter(tasks)
        running: dict[Future[None], Task] = {}
        while True:
            # A few in advance per worker, not all: a listing of millions of files is large.
            for task in islice(waiting, 2 * workers - len(running)):
                future = pool.submit(
                    _make_and_write, folder, task[0], task[1], options, mode, num_classes
                )
                running[future] = task
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                future.result()
                yield task
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps for want of memory: type the same again, "
            "finished shards are kept, perhaps with fewer --workers",
            exit_code=1,
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _make_and_write(
    folder: Path, number: int, unit: Unit, options: PrepareOptions, mode: Mode, num_classes: int
) -> None:
    write_shard(folder, number, *make_shard(unit, options, mode, num_classes))


def _die_with_parent(parent: int) -> None:
    """A worker must not outlive a killed `prepare`: the next one would race it for the shards."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _on_ray(
    tasks: list[Task],
    folder: Path,
    options: PrepareOptions,
    mode: Mode,
    num_classes: int,
) -> Iterator[Task]:
    """Workers send bytes back and this process writes: OUT need not be on a shared disk."""
    import ray

    from cluster.session import ClusterError, ray_session

    if not ray.is_initialized():
        _knock(str(options.address))
    # A caller that is connected already stays so.
    session = nullcontext() if ray.is_initialized() else ray_session(options.address)
    try:
        with session:
            yield from _remotely(tasks, folder, options, mode, num_classes)
    except ClusterError as error:
        raise UserError(" ".join(str(error).split()), exit_code=1) from None
    except ray.exceptions.RayError as error:
        raise UserError(
            f"the Ray cluster failed: {str(error).strip().splitlines()[-1]}: type the same again, "
            "finished shards are kept",
            exit_code=1,
        ) from None


def _knock(address: str) -> None:
    """Ray itself tries an address where nothing listens for minutes.

    Raises:
        UserError: nothing answers at a host:port.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at {address}: {error.strerror or error}", exit_code=1
        ) from None


def _remotely(
    tasks: list[Task],
    folder: Path,
    options: PrepareOptions,
    mode: Mode,
    num_classes: int,
) -> Iterator[Task]:
    import ray

    remote = ray.remote(num_cpus=1, max_retries=3)(make_shard)
    # Twice as many as fit, so that no core waits; more would fill the object store.
    ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = iter(tasks)
    running: dict[ray.ObjectRef, Task] = {}
    while True:
        for task in islice(waiting, ahead - len(running)):
            running[remote.remote(task[1], options, mode, num_classes)] = task
        if not running:
            return
        ready, _ = ray.wait(list(running), num_returns=1)
        task = running.pop(ready[0])
        write_shard(folder, task[0], *ray.get(ready[0]))
        del ready  # the object store keeps what is referred to
        yield task
