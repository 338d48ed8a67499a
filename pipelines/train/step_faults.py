"""What a job does about steps that do not fit its memory, or are not finite.

A worker's share of a batch (`batch_size / workers`) is cut into micro-batches whose gradients are
summed, so the global batch and the result do not depend on them, up to rounding.
`train.micro_batch` gives their size and `train.accumulate` their number; with neither the whole
share is one. Where memory runs out the size halves, on all workers together, and stays so when the
job resumes.

A single step that is not finite is left out (`update.py`). Where they follow on each other the
weights are beyond help: the job goes back to its last checkpoint but not in its data, so that it
passes over the stretch that ruined them (as PaLM did about loss spikes, Chowdhery et al., 2022,
section 5.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelines.config import TrainConfig
from pipelines.errors import UserError


def first_micro_batch(train: TrainConfig, share: int, remembered: int | None = None) -> int:
    """The size to begin with.

    Args:
        train: has `micro_batch` or `accumulate`.
        share: images of a batch on each worker.
        remembered: the size the job had come down to before it was interrupted.
    """
    size = train.micro_batch or math.ceil(share / train.accumulate)
    return max(1, min(size, share, remembered or share))


def halved(size: int) -> int:
    """Half of it, at least 1.

    Raises:
        UserError: it is 1 already.
    """
    if size == 1:
        raise UserError(
            "out of memory with one image at a time: set train.checkpoint_activations or "
            "train.precision=bf16, or take a smaller model",
            exit_code=1,
        )
    return math.ceil(size / 2)


@dataclass
class BadSteps:
    """Counts steps that were left out; the same on every rank.

    Attributes:
        skipped: all so far.
        in_row: since the last good step, or since going back.
        rollbacks: times the job went back.
    """

    skipped: int = 0
    in_row: int = 0
    rollbacks: int = 0

    def good(self) -> None:
        """A step was applied."""
        self.in_row = 0

    def bad(self) -> None:
        """A step was left out."""
        self.skipped += 1
        self.in_row += 1

    def went_back(self) -> None:
        """The job went back to a checkpoint."""
        self.in_row = 0
        self.rollbacks += 1


def gave_up(
    job_id: str, bad: BadSteps, *, step: int, loss: float, lr: float, has_checkpoint: bool
) -> UserError:
    """The error of a job that cannot go on.

    Args:
        job_id: the job's name.
        bad: what happened so far.
        step: the last one, counted from 1 over all epochs.
        loss: its mean over the ranks.
        lr: its learning rate.
        has_checkpoint: there is one to go back to.
    """
    what = (
        f"the gradient of a loss of {loss:.4g} is not finite"
        if math.isfinite(loss)
        else f"the loss is {loss}"
    )
    tried = f"gone back {bad.rollbacks} times" if has_checkpoint else "no checkpoint to go back to"
    return UserError(
        f"numeric: {what} at step {step} of {job_id} at learning rate {lr:.2g}, {bad.in_row} such "
        f"steps in a row, {tried}: lower train.lr or lengthen train.warmup_epochs",
        exit_code=1,
    )
