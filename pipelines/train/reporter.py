"""Where a job's reports and checkpoints go: a folder (torchrun), or Ray Train."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist

from pipelines.train.checkpoint import damage

logger = logging.getLogger(__name__)

CHECKPOINTS_KEPT = 2
# Fills a folder with this rank's part of a checkpoint; called on every rank.
WriteCheckpoint = Callable[[Path], None]


class Reporter(Protocol):
    """What the training loop needs from the world around it."""

    def newest_checkpoint(self) -> Path | None:
        """A local folder with the newest undamaged checkpoint, the same on all ranks."""

    def report(self, metrics: dict[str, Any], epoch: int, write: WriteCheckpoint) -> None:
        """Called by every rank at the same points: stores the checkpoint, hands on the metrics."""

    def report_again(self, metrics: dict[str, Any], checkpoint: Path) -> None:
        """Hands on the last report of a job that had finished before, with its checkpoint."""


def _newest_undamaged(folders: list[Path]) -> Path | None:
    for folder in folders:
        problem = damage(folder)
        if problem is None:
            return folder
        logger.warning("checkpoint %s is left out: %s", folder, problem)
    return None


def checkpoint_folders(directory: Path) -> list[Path]:
    """The checkpoint folders of a job, newest first, whole or not."""
    return sorted(directory.glob("epoch-*"), reverse=True)


class FolderReporter:
    """Checkpoints in the job's folder, reports as JSON lines beside them; for torchrun."""

    def __init__(self, directory: Path, rank: int) -> None:
        self.directory = directory
        self.rank = rank
        self.directory.mkdir(parents=True, exist_ok=True)

    def newest_checkpoint(self) -> Path | None:
        """See `Reporter`."""
        return _newest_undamaged(checkpoint_folders(self.directory))

    def report(self, metrics: dict[str, Any], epoch: int, write: WriteCheckpoint) -> None:
        """See `Reporter`. The folder is written aside and renamed once all ranks are done."""
        aside = self.directory / f".writing-{epoch:04d}"
        final = self.directory / f"epoch-{epoch:04d}"
        if self.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
        with tempfile.TemporaryDirectory(prefix="tokenpool-checkpoint-") as own:
            write(Path(own))
            dist.barrier()
            shutil.copytree(own, aside, dirs_exist_ok=True)
        dist.barrier()
        if self.rank == 0:
            shutil.rmtree(final, ignore_errors=True)
            os.replace(aside, final)
            with (self.directory / "reports.jsonl").open("a") as file:
                file.write(json.dumps(metrics) + "\n")
            for old in checkpoint_folders(self.directory)[CHECKPOINTS_KEPT:]:
                shutil.rmtree(old)
        dist.barrier()

    def report_again(self, metrics: dict[str, Any], checkpoint: Path) -> None:
        """See `Reporter`: the report is on disk already."""


class RayReporter:
    """Checkpoints and reports through Ray Train, which stores them under its run's folder.

    Ray merges the files of all ranks into one folder of the shared storage and then commits
    it. The ranks' folders are named by epoch, so those before the newest can be found too.
    """

    def __init__(self) -> None:
        self._suffix = ""

    def newest_checkpoint(self) -> Path | None:
        """See `Reporter`."""
        from ray import train

        newest = train.get_checkpoint()
        if newest is None:
            return None
        with newest.as_directory() as folder:
            committed = Path(folder)
        folders = checkpoint_folders(committed.parent)
        earlier = [folder for folder in folders if folder.name < committed.name]
        chosen = _newest_undamaged([committed, *earlier])
        if chosen != committed:
            # Epochs are done again under new names: Ray keeps a list of the old ones, and would
            # delete a folder that is on it twice.
            self._suffix = f"-r{len(folders)}"
        return chosen

    def report(self, metrics: dict[str, Any], epoch: int, write: WriteCheckpoint) -> None:
        """See `Reporter`."""
        from ray import train

        with tempfile.TemporaryDirectory(prefix="tokenpool-checkpoint-") as aside:
            write(Path(aside))
            train.report(
                metrics,
                checkpoint=train.Checkpoint.from_directory(aside),
                checkpoint_dir_name=f"epoch-{epoch:04d}{self._suffix}",
            )

    def report_again(self, metrics: dict[str, Any], checkpoint: Path) -> None:
        """See `Reporter`. The checkpoint is stored and must not be stored twice."""
        from ray import train
        from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY

        train.report({**metrics, CHECKPOINT_PATH_KEY: str(checkpoint)})
