"""How many images a worker computes at a time: as many as its memory holds.

A worker's share of a batch (`batch_size / workers`) is cut into micro-batches whose gradients are
summed, so the global batch and the result do not depend on them, up to rounding.
`train.micro_batch` gives their size and `train.accumulate` their number; with neither the whole
share is one. Where memory runs out the size halves, on all workers together, and stays so when the
job resumes.
"""

from __future__ import annotations

import math

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
