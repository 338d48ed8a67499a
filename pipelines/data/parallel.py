"""Shards made by all cores, or by a Ray cluster; one result after the other, as they finish."""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from itertools import islice
from pathlib import Path

from pipelines.data.options import PrepareOptions
from pipelines.data.processes import WorkerDiedError, WorkerProcesses
from pipelines.data.shards import Recipe, make_shard, write_shard
from pipelines.data.sources.source import Unit
from pipelines.errors import UserError

Task = tuple[int, Unit]
# What making a shard needs, imported while the source is still being listed.
_MODULES = [__name__, "PIL.JpegImagePlugin", "pipelines.data.sources.folder"]


@contextmanager
def workers_for(options: PrepareOptions) -> Iterator[WorkerProcesses | None]:
    """Workers that start at once and end with the block; None where one process does the work."""
    if options.address is not None or options.processes == 1:
        yield None
        return
    with closing(WorkerProcesses(_MODULES)) as workers:
        yield workers


def make_shards(
    numbers: list[int],
    units: Sequence[Unit],
    folder: Path,
    recipe: Recipe,
    workers: WorkerProcesses | None,
    *,
    keep: bool = True,
) -> Iterator[int]:
    """Make the shards of these numbers in `folder`; yields the number of each as it is done.

    Each unit is asked for when it is its turn. `workers` are from `workers_for` the same options;
    with `keep` the images' bytes are written too, not only the tables.

    Raises:
        UserError: a worker process was killed, or the Ray cluster failed.
        OSError: no space, and the like.
    """
    tasks = ((number, units[number]) for number in numbers)
    if recipe.options.address is not None:
        with closing(_on_ray(tasks, recipe)) as made:
            for number, data, table in made:
                write_shard(folder, number, data if keep else None, table)
                yield number
        return
    count = min(recipe.options.processes, len(numbers))
    calls = ((number, (folder, number, unit, recipe, keep)) for number, unit in tasks)
    if workers is None or count <= 1:
        for number, arguments in calls:
            _make_and_write(*arguments)
            yield number
        return
    try:
        yield from workers.run(count, _make_and_write, calls)
    except WorkerDiedError:
        raise UserError(
            "a worker process was killed, perhaps for want of memory: type the same again, "
            "finished shards are kept, perhaps with fewer --workers",
            exit_code=1,
        ) from None


def _make_and_write(folder: Path, number: int, unit: Unit, recipe: Recipe, keep: bool) -> None:
    data, table = make_shard(unit, recipe)
    write_shard(folder, number, data if keep else None, table)


def _on_ray(tasks: Iterator[Task], recipe: Recipe) -> Generator[tuple[int, bytes, bytes]]:
    """(number, data, table) of shards: this process writes, so OUT need not be on a shared disk."""
    import ray

    from cluster.session import ClusterError, ray_session

    address = str(recipe.options.address)
    if not ray.is_initialized():
        _knock(address)
    # A caller that is connected already stays so.
    session = nullcontext() if ray.is_initialized() else ray_session(address)
    try:
        with session:
            yield from _remotely(tasks, recipe)
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


def _remotely(tasks: Iterator[Task], recipe: Recipe) -> Iterator[tuple[int, bytes, bytes]]:
    import ray

    remote = ray.remote(num_cpus=1, max_retries=3)(make_shard)
    # Twice as many as fit, so that no core waits; more would fill the object store.
    ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: dict[ray.ObjectRef, int] = {}
    while True:
        for number, unit in islice(tasks, ahead - len(running)):
            running[remote.remote(unit, recipe)] = number
        if not running:
            return
        ready, _ = ray.wait(list(running), num_returns=1)
        number = running.pop(ready[0])
        data, table = ray.get(ready[0])
        del ready  # the object store keeps what is referred to
        yield number, data, table
        del data
