"""Small made image sets, and a checksum cache of the tests' own."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def photo(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    """A smooth colourful picture, different for each seed: JPEG changes it little."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **({"quality": 95} | options))
    return buffer.getvalue()


def make_folder(root: Path, train: int = 12, val: int = 4, classes: int = 3) -> Path:
    """`train` and `val` JPEGs per class of varying size."""
    for split, count, base in (("train", train, 0), ("val", val, 1000)):
        for label in range(classes):
            folder = root / split / f"c{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                seed = base + 100 * label + i
                size = (40 + 7 * (seed % 5), 36 + 5 * (seed % 7))
                (folder / f"{i:03d}.jpg").write_bytes(jpeg(photo(seed, *size)))
    return root


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """An image folder: 3 classes, 12 train and 4 val images each, of several sizes."""
    return make_folder(tmp_path_factory.mktemp("source") / "photos")


@pytest.fixture(scope="session")
def prepared_photos(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "photos"
    prepare(str(photos), out, PrepareOptions(minival=0.25, workers=1))
    return out
