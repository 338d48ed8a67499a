"""The images of a prepared split, batch by batch, for who has a model and trains nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.data.loader import make_loader
from pipelines.data.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor


def split_batches(
    data: Path,
    split: str,
    view: Preprocessing,
    batch_size: int,
    *,
    train: bool = False,
    **options: Any,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (uint8 `[B, 3, H, W]`, not normalised) and labels; the loader ends with them.

    Args:
        data: a prepared folder.
        split: of it.
        view: what the model's images look like.
        batch_size: images of a batch.
        train: shuffled and cropped as in training.
        options: for `make_loader`.
    """
    loader = make_loader(
        data,
        split,
        batch_size=batch_size,
        train=train,
        image_size=view.size[0],
        geometry="auto" if train or view.cut is None else view.cut,
        **options,
    )
    with closing(loader):
        yield from loader
