"""Where a job's reports and checkpoints go: a folder (torchrun), or Ray Train."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist

from pipelines.storage.durable import flush, flush_tree
from pipelines.storage.room import MINUTES
from pipelines.train.checkpoint import damage
from pipelines.train.checkpoint_room import part_of_checkpoint
from pipelines.train.draining import drained_nodes
from pipelines.train.fence import Fence, folder_fence
from pipelines.train.reports import add_report
from pipelines.train.retention import (
    checkpoint_folders,
    folder_name,
    is_within_epoch,
    keep_if_best,
    superseded,
)

__all__ = ["FolderReporter", "RayReporter", "Reporter", "WriteCheckpoint", "checkpoint_folders"]

logger = logging.getLogger(__name__)

# Fills a folder with this rank's part of a checkpoint; called on every rank.
WriteCheckpoint = Callable[[Path], None]


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


def _newest_undamaged(folders: list[Path]) -> Path | None:
    for folder in folders:
        problem = damage(folder)
        if problem is None:
            return folder
        logger.warning("checkpoint %s is left out: %s", folder, problem)
    return None


def _store(
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
        return _newest_undamaged(checkpoint_folders(self.directory))

    def report(
        self, metrics: dict[str, Any], epoch: int, write: WriteCheckpoint, keep: int
    ) -> None:
        """See `Reporter`."""
        # In this order: a job killed in between does the epoch again and replaces its line.
        tell = partial(add_report, self.directory, metrics)
        folder = _store(self.directory, folder_name(epoch), write, self._fence, tell)
        if self.rank == 0:
            keep_if_best(self.directory, folder)
            for old in superseded(self.directory, keep):
                shutil.rmtree(old)
            if self._tell is not None:
                self._tell(metrics)
        dist.barrier()

    def save(self, epoch: int, step: int, write: WriteCheckpoint, keep: int) -> None:
        """See `Reporter`."""
        _store(self.directory, folder_name(epoch, step), write, self._fence)
        if self.rank == 0:
            for old in superseded(self.directory, keep):
                shutil.rmtree(old)
        dist.barrier()

    def report_again(self, metrics: dict[str, Any], checkpoint: Path) -> None:
        """See `Reporter`: the report is on disk already."""


class RayReporter:
    """Checkpoints and reports through Ray Train, which stores them under its run's folder.

    Ray merges the files of all ranks into one folder of the shared storage and then commits
    it. The ranks' folders are named by epoch, so those before the newest can be found too.

    Checkpoints within an epoch are written into the same folder but not told to Ray: to Tune each
    would look like a report. `keep` of the epochs' is Ray's `num_to_keep`; the best epoch's is
    kept beside them, because Ray with a score would keep the best and of the newest only one,
    and there would be none to fall back to from a damaged one.

    Args:
        minutes: how long a full disk is waited for.
    """

    def __init__(self, minutes: float = MINUTES) -> None:
        self._suffix, self._minutes = "", minutes
        self.drained: Callable[[], str] | None = drained_nodes

    @property
    def _directory(self) -> Path:
        from ray import train

        return Path(train.get_context().get_storage().experiment_fs_path)

    @cached_property
    def _fence(self) -> Fence:
        return folder_fence(self._directory)

    def newest_checkpoint(self) -> Path | None:
        """See `Reporter`."""
        from ray import train

        if dist.get_rank() == 0:
            self._fence.take()
        folders = checkpoint_folders(self._directory)
        newest = train.get_checkpoint()
        committed: Path | None = None
        if newest is not None:
            with newest.as_directory() as folder:
                committed = Path(folder)
        chosen = _newest_undamaged(known_to_ray(folders, committed))
        if committed is not None and (chosen is None or chosen.name < committed.name):
            # Epochs are done again under new names: Ray keeps a list of the old ones, and would
            # delete a folder that is on it twice.
            self._suffix = f"-r{len(folders)}"
        return chosen

    def report(
        self, metrics: dict[str, Any], epoch: int, write: WriteCheckpoint, keep: int
    ) -> None:
        """See `Reporter`."""
        from ray import train

        name = folder_name(epoch) + self._suffix
        with part_of_checkpoint(write, self._directory, self._minutes) as aside:
            if dist.get_rank() == 0:
                self._fence.check()
                # Before the checkpoint is there: after it the epoch may never be done again.
                add_report(self._directory, metrics)
            train.report(
                metrics,
                checkpoint=train.Checkpoint.from_directory(aside),
                checkpoint_dir_name=name,
                checkpoint_upload_fn=self._put,
            )
        dist.barrier()  # all ranks' files are there
        if dist.get_rank() == 0:
            keep_if_best(self._directory, self._directory / name)
            self._delete_superseded(keep)

    def _put(self, checkpoint: Any, name: str) -> Any:
        """Copies a rank's part to its place. Ray would not flush it, and delete those before."""
        from ray import train

        target = self._directory / name
        shutil.copytree(checkpoint.path, target, dirs_exist_ok=True)
        flush_tree(target)
        flush(self._directory)
        return type(checkpoint)(str(target), train.get_context().get_storage().storage_filesystem)

    def save(self, epoch: int, step: int, write: WriteCheckpoint, keep: int) -> None:
        """See `Reporter`."""
        _store(self._directory, folder_name(epoch, step), write, self._fence, minutes=self._minutes)
        if dist.get_rank() == 0:
            self._delete_superseded(keep)
        dist.barrier()

    def _delete_superseded(self, keep: int) -> None:
        for old in superseded(self._directory, keep):
            if is_within_epoch(old):  # the others are Ray's
                shutil.rmtree(old)

    def report_again(self, metrics: dict[str, Any], checkpoint: Path) -> None:
        """See `Reporter`. The checkpoint is stored and must not be stored twice."""
        from ray import train
        from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY

        train.report({**metrics, CHECKPOINT_PATH_KEY: str(checkpoint)})


def known_to_ray(folders: list[Path], committed: Path | None) -> list[Path]:
    """The checkpoints to choose from: what Ray committed, older ones, and the epoch's after it.

    An epoch that Ray did not hear of is done again, with all that came after it, so that its
    report is not lost.
    """
    name = folder_name(0) if committed is None else committed.name
    epoch = name.split("-r")[0]
    return [
        folder
        for folder in folders
        if folder.name <= name or folder.name.startswith(f"{epoch}-step-")
    ]
