"""The shape of the model that a job or a search is about."""

from __future__ import annotations

from pipelines.config import StrictModel


class ModelSpec(StrictModel):
    """A DeiT of any width, or the shape of the weights that a job starts from."""

    width: int
    heads: int
    depth: int
    patch_size: int
    image_size: int
    num_classes: int
