"""Where a job's reports and checkpoints go, as the loop sees it; a plain folder, for torchrun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch.distributed as dist

from pipelines.train.checkpoint import folder_name
from pipelines.train.job_folder import JobFolder, WriteCheckpoint
from pipelines.train.reports import Report


class Reporter(Protocol):
    """What the training loop needs from the world around it.

    Attributes:
        drained: names the job's machines that are to be taken away; None where nobody would say.
    """

    drained: Callable[[], str] | None

    def newest_checkpoint(self) -> Path | None:
        """A local folder with the newest undamaged checkpoint, the same on all ranks."""

    def report(self, report: Report, write: WriteCheckpoint, keep: int) -> None:
        """Called by every rank after an epoch: stores the checkpoint, hands on the report."""

    def save(self, epoch: int, step: int, write: WriteCheckpoint, keep: int) -> None:
        """Called by every rank within an epoch, after `epoch` whole ones and `step` steps."""

    def report_again(self, report: Report, checkpoint: Path) -> None:
        """Hands on the last report of a job that had finished before, with its checkpoint."""


class FolderReporter:
    """Checkpoints in the job's folder, reports as JSON lines beside them; for torchrun.

    Args:
        folder: the job's.
        tell: given each report, on rank 0.
    """

    drained: Callable[[], str] | None = None

    def __init__(
        self, folder: JobFolder, tell: Callable[[Report], object] = lambda report: None
    ) -> None:
        self._folder, self._tell = folder, tell

    def newest_checkpoint(self) -> Path | None:
        """See `Reporter`."""
        if dist.get_rank() == 0:
            self._folder.take_over()
        return self._folder.newest_undamaged(self._folder.checkpoints())

    def report(self, report: Report, write: WriteCheckpoint, keep: int) -> None:
        """See `Reporter`."""
        name = folder_name(report.epoch)
        if dist.get_rank() == 0:
            # Before the checkpoint is there: a job killed in between does the epoch again and
            # replaces its line.
            self._folder.check_writer()
            self._folder.add_report(report)
        self._folder.save(name, write)
        if dist.get_rank() == 0:
            self._folder.keep_if_best(name, report.top1_minival)
            self._folder.delete_superseded(keep)
            self._tell(report)
        dist.barrier()

    def save(self, epoch: int, step: int, write: WriteCheckpoint, keep: int) -> None:
        """See `Reporter`."""
        self._folder.save(folder_name(epoch, step), write)
        if dist.get_rank() == 0:
            self._folder.delete_superseded(keep)
        dist.barrier()

    def report_again(self, report: Report, checkpoint: Path) -> None:
        """See `Reporter`: the report is on disk already."""
