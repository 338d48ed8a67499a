"""What a user may choose about preparing data."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.data.names import storable
from pipelines.errors import UserError

# Options added after the first manifests were written: only told where they are used.
_LATER = frozenset({
    "source", "train_from", "val_from", "labels", "image_column", "label_column", "split_column",
    "share_names",
})  # fmt: skip


class PrepareOptions(BaseModel):
    """Options of `tokenpool prepare`; None means the source's own default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, ge=0)
    mode: Literal["jpg", "raw", "proportion"] | None = Field(
        default=None,
        description="How images are stored: JPEG, raw pixels, or JPEG for a share of them.",
    )
    proportion: float = Field(
        default=0.5, ge=0, le=1, description="Share of JPEGs in mode proportion."
    )
    quality: int = Field(
        default=90, ge=1, le=100, description="JPEG quality where images are encoded."
    )
    reencode: bool = Field(
        default=False, description="Encode JPEGs anew even where the source's bytes could be kept."
    )
    resolution: int | None = Field(default=None, ge=1, le=65535, description="Shrink to this side.")
    resolution_side: Literal["longest", "shortest"] = "longest"
    minival: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Share of the training images, stratified, for minival.",
    )
    val: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Share of all images for val, where the source has no val.",
    )
    classes: int | list[str] | None = Field(
        default=None, description="The first so many classes, or the named ones only."
    )
    max_pixels: int = Field(
        default=100_000_000, ge=1, description="Larger images are refused as decompression bombs."
    )
    skip_bad: bool = Field(default=False, description="Go on without the images that are refused.")
    source: Literal["folder", "parquet", "tar"] | None = Field(
        default=None, description="What kind of source it is, where that can be read in two ways."
    )
    train_from: str | None = Field(
        default=None,
        description="Folder or file of the training images, below SOURCE or on its own.",
    )
    val_from: str | None = Field(
        default=None, description="Folder or file of the val images, below SOURCE or on its own."
    )
    labels: str | None = Field(
        default=None, description="A CSV file that names each image and its class."
    )
    image_column: str | None = Field(default=None, description="Column of the images.")
    label_column: str | None = Field(default=None, description="Column of the labels.")
    split_column: str | None = Field(default=None, description="Column of the splits.")
    share_names: bool = Field(
        default=False,
        description="Parquet files without class names number classes as those with names do.",
    )
    workers: int = Field(default=0, ge=0, description="Processes; 0: one per core.")
    address: str | None = Field(default=None, description="Ray cluster that writes the shards.")
    # glyphs only
    count: int = Field(default=50_000, ge=1, description="glyphs: images.")
    size: int = Field(default=64, ge=16, le=512, description="glyphs: side in pixels.")
    num_glyphs: int = Field(default=36, ge=2, le=62, description="glyphs: classes.")
    clutter: float = Field(
        default=0.5, ge=0, le=1, description="glyphs: strength of the background."
    )
    variation: float = Field(
        default=0.5, ge=0, le=1, description="glyphs: spread of place, size, angle and colour."
    )
    glyph_scale: float = Field(
        default=0.62, ge=0.2, le=0.8, description="glyphs: character height over image side."
    )

    @property
    def processes(self) -> int:
        """How many to work with on this machine."""
        return self.workers or len(os.sched_getaffinity(0))

    def content(self) -> dict[str, Any]:
        """The options that decide what is written, without those that only decide how."""
        content = self.model_dump(exclude={"workers", "address", "skip_bad"})
        # Data that was prepared before there were these options is still the same data.
        return {key: _storable(v) for key, v in content.items() if key not in _LATER or v}


def _storable(value: Any) -> Any:
    if isinstance(value, list):
        return [storable(name) for name in value]
    return storable(value) if isinstance(value, str) else value


def parse_options(**values: Any) -> PrepareOptions:
    """Build options.

    Raises:
        UserError: a value is out of range; names the option.
    """
    try:
        return PrepareOptions(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"option {where}: {first['msg']} (got {first['input']!r})") from None


def options_hash(source: str, options: PrepareOptions) -> str:
    """Hex digest of a source's name and everything that decides what is written."""
    text = json.dumps([source, options.content()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
