"""The 1,797 handwritten digits that come with scikit-learn, brought to 32 px RGB."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipelines.data.sources.source import Sample, Source

SIDE = 32


@dataclass(frozen=True)
class DigitsUnit:
    """All digits: they are few."""

    num_samples: int = 1797

    def read(self) -> Iterator[Sample]:
        """Upsample each 8×8 image of grey levels 0..16 bicubically to 32×32, all channels equal."""
        from PIL import Image
        from sklearn.datasets import load_digits

        data = load_digits()
        for i, (grey, label) in enumerate(zip(data.images, data.target, strict=True)):
            small = Image.fromarray(np.rint(grey * (255 / 16)).astype(np.uint8))
            large = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            pixels = np.repeat(large[:, :, None], 3, axis=2)
            yield Sample(f"digits/{i:04d}", "", int(label), pixels)


def digits_source() -> Source:
    """The built-in source `digits`: minival is a fifth of the training images, val a fifth."""
    return Source(
        "digits",
        [str(digit) for digit in range(10)],
        [DigitsUnit()],
        default_mode="raw",
        default_minival=0.2,
        default_val=0.2,
    )
