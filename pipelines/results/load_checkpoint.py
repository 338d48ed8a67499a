"""The trained model behind a point."""

from __future__ import annotations

from torch import nn

import tokenpool as tp
from pipelines.errors import UserError
from pipelines.results.points import Point
from pipelines.storage.copies import local_path


def load_checkpoint(point: Point) -> nn.Module:
    """The PyTorch model of a point that has a checkpoint, on the CPU, in evaluation mode.

    Raises:
        UserError: The checkpoint is gone or damaged.
    """
    try:
        return tp.load(local_path(str(point.checkpoint))).eval()
    except ValueError as error:
        raise UserError(f"the checkpoint of {point.point_id}: {error}", exit_code=1) from None
