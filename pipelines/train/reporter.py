"""Where a job's reports and checkpoints go, as the loop sees it; a plain folder, for torchrun.

One writer at a time in a job's folder: who came last; who was before it finds itself fenced off. A
host that is cut off goes on training while the job is started again elsewhere. Once it can be
reached again, or where it reaches the storage all the time, it must not write over what is newer.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist

from pipelines.errors import UserError
from pipelines.storage.durable import flush, flush_tree, write_durably
from pipelines.storage.room import MINUTES
from pipelines.storage.store import ObjectStore
from pipelines.train.checkpoint import (
    checkpoint_folders,
    damage,
    folder_name,
    keep_if_best,
    superseded,
)
from pipelines.train.checkpoint_room import part_of_checkpoint
from pipelines.train.reports import add_report

logger = logging.getLogger(__name__)
WRITER_NAME = "writer"
# Fills a folder with this rank's part of a checkpoint; called on every rank.
WriteCheckpoint = Callable[[Path], None]


class Fence:
    """Kept by a job's first rank.

    Args:
        read: what is noted of the writer, if anything.
        write: notes it.
    """

    def __init__(self, read: Callable[[], bytes | None], write: Callable[[bytes], None]) -> None:
        self._read, self._write = read, write
        self._token = b""

    def take(self) -> None:
        """From now on this process is the one that writes; to be called before it reads."""
        if not self._token:
            self._token = secrets.token_hex(8).encode()
            self._write(self._token)

    def check(self) -> None:
        """To be called before each write.

        Raises:
            UserError: another process has taken this one's place.
        """
        if self._token and self._read() != self._token:
            raise UserError("this job was started anew elsewhere, and goes on there", exit_code=1)


def folder_fence(directory: Path) -> Fence:
    """For a job's folder."""
    path = directory / WRITER_NAME

    def read() -> bytes | None:
        return path.read_bytes() if path.exists() else None

    def write(token: bytes) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        write_durably(path, [token])

    return Fence(read, write)


def store_fence(store: ObjectStore) -> Fence:
    """For a job's folder in an object store."""
    return Fence(lambda: store.read(WRITER_NAME), lambda token: store.write(WRITER_NAME, token))


class Reporter(Protocol):
    """What the training loop needs from the world around it.

    Attributes:
        drained: names the job's machines that are to be taken away; None where nobody would say.
    """

    drained: Callable[[], str] | None

    def newest_checkpoint(self) -> Path | None:
        """A local folder with the newest undamaged checkpoint, the same on all ranks."""

    def report(
        self, metrics: dict[str, Any], epoch: int, write: WriteCheckpoint, keep: int
    ) -> None:
        """Called by every rank after an epoch: stores the checkpoint, hands on the metrics."""

    def save(self, epoch: int, step: int, write: WriteCheckpoint, keep: int) -> None:
        """Called by every rank within an epoch, after `epoch` whole ones and `step` steps."""

    def report_again(self, metrics: dict[str, Any], checkpoint: Path) -> None:
        """Hands on the last report of a job that had finished before, with its checkpoint."""


def newest_undamaged(folders: list[Path]) -> Path | None:
    """The first of some checkpoints that is complete and unaltered; tells of those before it."""
    for folder in folders:
        problem = damage(folder)
        if problem is None:
            return folder
        logger.warning("checkpoint %s is left out: %s", folder, problem)
    return None


def store_checkpoint(
    directory: Path,
    name: str,
    write: WriteCheckpoint,
    fence: Fence,
    before: Callable[[], None] | None = None,
    minutes: float = MINUTES,
) -> Path:
    """Writes a checkpoint of all ranks aside, and renames it once all of them are done.

    `before` is called on rank 0 right before that.
    """
    aside, final = directory / f".writing-{name}", directory / name
    is_first = dist.get_rank() == 0
    if is_first:
        fence.check()
        for left_over in directory.glob(".writing-*"):
            shutil.rmtree(left_over)
        aside.mkdir(parents=True)
    with part_of_checkpoint(write, directory, minutes) as own:
        dist.barrier()
        shutil.copytree(own, aside, dirs_exist_ok=True)
        flush_tree(aside)
    dist.barrier()
    if is_first:
        fence.check()
        if before is not None:
            before()
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        flush(directory)
    return final


class FolderReporter:
    """Checkpoints in the job's folder, reports as JSON lines beside them; for torchrun.

    Args:
        directory: the job's folder, which all ranks share.
        rank: of this process.
        tell: given each report, on rank 0.
    """

    drained: Callable[[], str] | None = None

    def __init__(
        self, directory: Path, rank: int, tell: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        self.directory, self.rank, self._tell = directory, rank, tell
        self.directory.mkdir(parents=True, exist_ok=True)
        self._fence = folder_fence(directory)

    def newest_checkpoint(self) -> Path | None:
        """See `Reporter`."""
        if self.rank == 0:
            self._fence.take()
        return newest_undamaged(checkpoint_folders(self.directory))

    def report(
        self, metrics: dict[str, Any], epoch: int, write: WriteCheckpoint, keep: int
    ) -> None:
        """See `Reporter`."""
        # In this order: a job killed in between does the epoch again and replaces its line.
        tell = partial(add_report, self.directory, metrics)
        folder = store_checkpoint(self.directory, folder_name(epoch), write, self._fence, tell)
        if self.rank == 0:
            keep_if_best(self.directory, folder)
            for old in superseded(self.directory, keep):
                shutil.rmtree(old)
            if self._tell is not None:
                self._tell(metrics)
        dist.barrier()

    def save(self, epoch: int, step: int, write: WriteCheckpoint, keep: int) -> None:
        """See `Reporter`."""
        store_checkpoint(self.directory, folder_name(epoch, step), write, self._fence)
        if self.rank == 0:
            for old in superseded(self.directory, keep):
                shutil.rmtree(old)
        dist.barrier()

    def report_again(self, metrics: dict[str, Any], checkpoint: Path) -> None:
        """See `Reporter`: the report is on disk already."""
