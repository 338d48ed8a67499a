"""What `tokenpool bench loader` compares: this loader, its decoder's limit, and what others use."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipelines.data import turbojpeg
from pipelines.data.loader import make_loader

_FAST_DCT = 2048  # TJFLAG_FASTDCT, which FFCV decodes with: the limit must not be easier or harder
BATCH_SIZE = 64


def contenders(
    source: Path, out: Path, image_size: int, cores: int
) -> dict[str, Callable[[], Iterator[int]]]:
    """Each gives an epoch as an iterator over the sizes of its batches."""
    return {
        "bare libjpeg-turbo": bare_decoder(source, cores),
        "tokenpool (ffcv)": ours(out, image_size, cores, "ffcv"),
        "torchvision, uint8": torchvision_loader(source, image_size, cores, normalised=False),
        "torchvision, normalised": torchvision_loader(source, image_size, cores, normalised=True),
        "timm": timm_loader(source, image_size, cores),
        "ffcv.Loader": ffcv_loader(out, image_size, cores),
        "tokenpool (torchvision)": ours(out, image_size, cores, "torchvision"),
    }


def bare_decoder(source: Path, cores: int) -> Callable[[], Iterator[int]]:
    """Decode every file from memory in `cores` threads and do nothing else."""
    files = []
    for path in sorted((source / "train").rglob("*.*")):
        with Image.open(path) as image:
            files.append((path.read_bytes(), *image.size))

    def epoch() -> Iterator[int]:
        def work(start: int) -> None:
            for data, width, height in files[start::cores]:
                turbojpeg.decode(data, width, height, flags=_FAST_DCT)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(cores)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        yield len(files)

    return epoch


def ours(
    out: Path, image_size: int, cores: int, implementation: Any
) -> Callable[[], Iterator[int]]:
    """This loader, on betons that are prepared."""
    loader = make_loader(
        out,
        "train",
        batch_size=BATCH_SIZE,
        train=True,
        num_threads=cores,
        image_size=image_size,
        geometry="crop",
        implementation=implementation,
    )
    epochs = itertools.count()

    def epoch() -> Iterator[int]:
        loader.set_epoch(next(epochs))
        for images, _ in loader:
            yield len(images)

    return epoch


def torchvision_loader(
    source: Path, image_size: int, cores: int, *, normalised: bool
) -> Callable[[], Iterator[int]]:
    """`ImageFolder` in a `DataLoader`; normalised on the CPU or left as bytes."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    last = [transforms.PILToTensor()]
    if normalised:
        last = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.25,) * 3)]
    steps = [transforms.RandomResizedCrop(image_size), transforms.RandomHorizontalFlip(), *last]
    dataset = ImageFolder(str(source / "train"), transforms.Compose(steps))
    loader = DataLoader(
        dataset, BATCH_SIZE, shuffle=True, num_workers=cores, drop_last=True,
        persistent_workers=True,
    )  # fmt: skip

    def epoch() -> Iterator[int]:
        for images, _ in loader:
            yield len(images)

    return epoch


def timm_loader(source: Path, image_size: int, cores: int) -> Callable[[], Iterator[int]]:
    """timm's `create_loader`, but for normalising."""
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", str(source / "train"))
    loader = create_loader(
        dataset,
        (3, image_size, image_size),
        BATCH_SIZE,
        is_training=True,
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=cores,
        device=torch.device("cpu"),
        persistent_workers=True,
    ).loader  # what it wraps gives uint8; the wrapper would normalise on the main core

    def epoch() -> Iterator[int]:
        for images, _ in loader:
            yield len(images)

    return epoch


def ffcv_loader(out: Path, image_size: int, cores: int) -> Callable[[], Iterator[int]]:
    """FFCV's own Python loader on the same beton."""
    loader: Any = None

    def epoch() -> Iterator[int]:
        nonlocal loader
        if loader is None:
            from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
            from ffcv.loader import Loader, OrderOption
            from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage

            loader = Loader(
                str(out / "train.beton"),
                BATCH_SIZE,
                cores,
                True,
                OrderOption.RANDOM,
                pipelines={
                    "image": [
                        RandomResizedCropRGBImageDecoder((image_size, image_size)),
                        RandomHorizontalFlip(),
                        ToTensor(),
                        ToTorchImage(),
                    ],
                    "label": [IntDecoder(), ToTensor()],
                },
            )
        for images, _ in loader:
            yield len(images)

    return epoch
