"""Photographs to measure loaders and training on, made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def make_photos(folder: Path, count: int, width: int = 500, height: int = 375) -> int:
    """Write JPEGs cut from scikit-learn's two photographs, in 4 classes below `folder`/train.

    Natural pictures, for noise or flat colour would take a decoder longer or shorter.

    Returns:
        Mean bytes per file.
    """
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    rng = np.random.default_rng(0)
    total = 0
    for i in range(count):
        photo = photos[i % len(photos)]
        scale = rng.uniform(0.75, 1.0)
        w = int(min(photo.width, photo.height * width / height) * scale)
        h = int(w * height / width)
        x, y = rng.integers(photo.width - w + 1), rng.integers(photo.height - h + 1)
        cut = photo.resize(
            (width, height), Image.Resampling.BICUBIC, box=(int(x), int(y), int(x) + w, int(y) + h)
        )
        path = folder / "train" / f"class{i % 4}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cut.save(path, quality=92)
        total += path.stat().st_size
    return total // count
