"""Folders of tiny pictures for tests of layouts, and what a source makes of them."""

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.data.options import PrepareOptions
from pipelines.data.sources.opening import open_source
from pipelines.data.sources.source import Source


@cache
def picture(number: int, kind: str = "PNG") -> bytes:
    """A small picture, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def make(root: Path, *folders: str, count: int = 2) -> Path:
    """`count` pictures in each folder, all different."""
    number = 0
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            number += 1
            (root / folder / f"{i}.png").write_bytes(picture(number))
    return root


def opened(root: Path, **options: object) -> tuple[Source, dict[str, tuple[str, str]]]:
    """The source, and {path: (class, split)} of all its samples; "" is for the seed to decide."""
    source = open_source(str(root), PrepareOptions(workers=1, **options))
    samples = [sample for unit in source.units for sample in unit.read()]
    assert len({sample.name for sample in samples}) == len(samples)
    return source, {s.name: (source.classes[s.label], s.split) for s in samples}


def left_out(source: Source) -> dict[str, int]:
    """How many for which reason."""
    return {entry.reason: entry.count for entry in source.left_out}
