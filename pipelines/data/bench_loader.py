"""How fast the loader is: against its decoder's own limit, and against what others use.

All contenders read the same JPEGs and cut the same kind of training crops (random-resized, flipped)
with the same number of cores, in turns within one run; medians of the turns.

The limit is libjpeg-turbo decoding every file in whole and doing nothing else. Our loader decodes
only the part that a crop needs, which is how it can come near the limit, or pass it.

torchvision is there twice. "normalised" is what training scripts run: ToTensor and Normalize on the
CPU, float batches. "uint8" is spared that work and so does exactly what our loader does, which
leaves normalising to the device. Targets are judged by "uint8", the harder one.
"""

import itertools
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data import turbojpeg
from pipelines.errors import UserError

_FAST_DCT = 2048  # TJFLAG_FASTDCT, which FFCV decodes with: the limit must not be easier or harder
BATCH_SIZE = 64


@dataclass(frozen=True)
class Row:
    """One contender's result: medians, and the turns they came from.

    `cpu_ms_per_image` is processor time of this process and its children: where something else
    runs on the machine it still tells the contenders apart, when images per second do not.
    """

    name: str
    images_per_s: float
    cpu_ms_per_image: float
    turns: list[float]
    first_batch_s: float | None = None


def make_photos(folder: Path, count: int, width: int = 500, height: int = 375) -> int:
    """Write JPEGs cut from scikit-learn's two photographs, in 4 classes below `folder`/train.

    Natural pictures, for noise or flat colour would take a decoder longer or shorter.

    Returns:
        Mean bytes per file.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

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


def run(
    *,
    cores: int,
    images: int = 1000,
    image_size: int = 224,
    turns: int = 5,
    source: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure.

    Args:
        cores: how many this process pins itself to; as many threads or worker processes are used.
        images: photographs to make where no `source` is given.
        image_size: side of the crops.
        turns: how often each contender runs; they take turns.
        source: an ImageNet-style folder to use instead of made photographs.
        progress: told what is measured next.

    Returns:
        A dictionary for JSON: rows, ratios and what they were measured on.

    Raises:
        UserError: fewer cores than asked for, or libjpeg-turbo or FFCV is missing.
    """
    available = sorted(os.sched_getaffinity(0))
    if cores > len(available):
        raise UserError(f"--cores {cores}: this process may use {len(available)}")
    if not turbojpeg.available():
        raise UserError("libturbojpeg is not installed: run `make install`", exit_code=1)
    import torch

    before = torch.get_num_threads()
    os.sched_setaffinity(0, available[:cores])
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="tokenpool-bench-") as scratch:
            return _run(Path(scratch), cores, images, image_size, turns, source, progress)
    finally:
        os.sched_setaffinity(0, available)
        torch.set_num_threads(before)


def _run(
    scratch: Path,
    cores: int,
    images: int,
    image_size: int,
    turns: int,
    source: Path | None,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    from pipelines.data.options import PrepareOptions
    from pipelines.data.prepare import prepare

    mean_bytes = None
    if source is None:
        progress(f"making {images} photographs of 500×375")
        source = scratch / "photos"
        mean_bytes = make_photos(source, images)
    progress("preparing betons")
    out = scratch / "betons"
    prepare(str(source), out, PrepareOptions(minival=0.0, val=0.0, workers=cores, skip_bad=True))

    contenders = _contenders(source, out, image_size, cores)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    processor: dict[str, list[float]] = {name: [] for name in contenders}
    first: dict[str, float] = {}
    for name, epoch in contenders.items():
        progress(f"warming up {name}")
        start = time.perf_counter()
        batches = epoch()
        next(batches)
        first[name] = time.perf_counter() - start
        for _ in batches:
            pass
    for turn in range(turns):
        for name, epoch in contenders.items():
            progress(f"turn {turn + 1} of {turns}: {name}")
            start, cpu = time.perf_counter(), _processor_seconds()
            seen = sum(epoch())
            times[name].append(seen / (time.perf_counter() - start))
            processor[name].append(1000 * (_processor_seconds() - cpu) / seen)
    progress("memory over 20 epochs")
    resident = _resident_over_epochs(contenders["tokenpool (ffcv)"], 20)
    rows = [
        Row(
            name,
            statistics.median(rates),
            round(statistics.median(processor[name]), 4),
            [round(r, 1) for r in rates],
            round(first[name], 3),
        )
        for name, rates in times.items()
    ]
    return {
        "rows": [row.__dict__ for row in rows],
        "ratios": _ratios({row.name: row.images_per_s for row in rows}),
        "ratios_by_processor_time": _ratios({row.name: 1 / row.cpu_ms_per_image for row in rows}),
        "resident_mib_after_each_epoch": resident,
        **machine_facts(cores),
        "images": images,
        "mean_jpeg_bytes": mean_bytes,
        "image_size": image_size,
        "batch_size": BATCH_SIZE,
        "cores": cores,
    }


def _ratios(rate: dict[str, float]) -> dict[str, float]:
    ours = rate["tokenpool (ffcv)"]
    usual = rate["torchvision, normalised"]
    return {
        "of the bare decoder": ours / rate["bare libjpeg-turbo"],
        "times torchvision ImageFolder + DataLoader, uint8": ours / rate["torchvision, uint8"],
        "times torchvision as usual (float, normalised on the CPU)": ours / usual,
        "times timm": ours / rate["timm"],
        "times FFCV's own loader": ours / rate["ffcv.Loader"],
    }


def _processor_seconds() -> float:
    """Of this process and all that it started and that still run."""
    import psutil

    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _resident_over_epochs(epoch: Callable[[], Iterator[int]], count: int) -> list[float]:
    """Resident memory after each of `count` epochs, MiB."""
    import psutil

    process, sizes = psutil.Process(), []
    for _ in range(count):
        for _ in epoch():
            pass
        sizes.append(round(process.memory_info().rss / 2**20, 1))
    return sizes


def machine_facts(cores: int) -> dict[str, Any]:
    """What the figures were measured on, with which versions and when."""
    from importlib.metadata import version

    from tokenpool.benchmark import hardware

    facts = dict(hardware("cpu"))
    facts["hardware"] = f"{facts['hardware'].rsplit(',', 1)[0]}, {cores} of {os.cpu_count()} cores"
    for package in ("torchvision", "timm", "ffcv", "pillow", "numba", "numpy"):
        facts[package] = version(package)
    return facts


def _contenders(
    source: Path, out: Path, image_size: int, cores: int
) -> dict[str, Callable[[], Iterator[int]]]:
    """Each gives an epoch as an iterator over the sizes of its batches."""
    return {
        "bare libjpeg-turbo": _bare_decoder(source, cores),
        "tokenpool (ffcv)": _ours(out, image_size, cores, "ffcv"),
        "torchvision, uint8": _torchvision(source, image_size, cores, normalised=False),
        "torchvision, normalised": _torchvision(source, image_size, cores, normalised=True),
        "timm": _timm(source, image_size, cores),
        "ffcv.Loader": _ffcv(out, image_size, cores),
        "tokenpool (torchvision)": _ours(out, image_size, cores, "torchvision"),
    }


def _bare_decoder(source: Path, cores: int) -> Callable[[], Iterator[int]]:
    """Decode every file from memory in `cores` threads and do nothing else."""
    from PIL import Image

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


def _ours(
    out: Path, image_size: int, cores: int, implementation: Any
) -> Callable[[], Iterator[int]]:
    from pipelines.data.loader import make_loader

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


def _torchvision(
    source: Path, image_size: int, cores: int, *, normalised: bool
) -> Callable[[], Iterator[int]]:
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


def _timm(source: Path, image_size: int, cores: int) -> Callable[[], Iterator[int]]:
    import torch
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


def _ffcv(out: Path, image_size: int, cores: int) -> Callable[[], Iterator[int]]:
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
