"""What a user may choose about preparing data."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.data.names import storable
from pipelines.errors import UserError
from pipelines.storage.hashes import json_hash

# Options added after the first manifests were written: only told where they are used.
_LATER = frozenset({
    "source", "train_from", "val_from", "labels", "image_column", "label_column", "split_column",
    "share_names",
})  # fmt: skip


class PrepareOptions(BaseModel):
    """Options of `tokenpool prepare`, whose help says what each is; None: the source's default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, ge=0)
    mode: Literal["jpg", "raw", "proportion"] | None = None
    proportion: float = Field(default=0.5, ge=0, le=1)
    quality: int = Field(default=90, ge=1, le=100)
    reencode: bool = False
    resolution: int | None = Field(default=None, ge=1, le=65535)
    resolution_side: Literal["longest", "shortest"] = "longest"
    minival: float | None = Field(default=None, ge=0, lt=1)
    val: float | None = Field(default=None, ge=0, lt=1)
    classes: int | list[str] | None = None  # the first so many, or the named ones
    max_pixels: int = Field(default=100_000_000, ge=1)
    skip_bad: bool = False
    source: Literal["folder", "parquet", "tar"] | None = None
    train_from: str | None = None  # --train
    val_from: str | None = None  # --val, where that is no share
    labels: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    share_names: bool = False
    workers: int = Field(default=0, ge=0)
    address: str | None = None
    # glyphs only
    count: int = Field(default=50_000, ge=1)
    size: int = Field(default=64, ge=16, le=512)
    num_glyphs: int = Field(default=36, ge=2, le=62)
    clutter: float = Field(default=0.5, ge=0, le=1)
    variation: float = Field(default=0.5, ge=0, le=1)
    glyph_scale: float = Field(default=0.62, ge=0.2, le=0.8)

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
    return json_hash([source, options.content()], 64)
