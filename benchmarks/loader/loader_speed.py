"""How fast the loader is: against its decoder's own limit, and against what others use.

All contenders read the same JPEGs and cut the same kind of training crops (random-resized, flipped)
with the same number of cores, in turns within one run; medians of the turns.

The limit is libjpeg-turbo decoding every file in whole and doing nothing else. Our loader decodes
only the part that a crop needs, which is how it can come near the limit, or pass it.

torchvision is there twice. "normalised" is what training scripts run: ToTensor and Normalize on the
CPU, float batches. "uint8" is spared that work and so does exactly what our loader does, which
leaves normalising to the device. Targets are judged by "uint8", the harder one.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.loader.loaders import BATCH_SIZE, contenders
from benchmarks.loader.photos import make_photos
from benchmarks.machine import machine_facts
from pipelines.data import turbojpeg
from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare
from pipelines.errors import UserError


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
    mean_bytes = None
    if source is None:
        progress(f"making {images} photographs of 500×375")
        source = scratch / "photos"
        mean_bytes = make_photos(source, images)
    progress("preparing betons")
    out = scratch / "betons"
    prepare(str(source), out, PrepareOptions(minival=0.0, val=0.0, workers=cores, skip_bad=True))

    epochs = contenders(source, out, image_size, cores)
    times: dict[str, list[float]] = {name: [] for name in epochs}
    processor: dict[str, list[float]] = {name: [] for name in epochs}
    first: dict[str, float] = {}
    for name, epoch in epochs.items():
        progress(f"warming up {name}")
        start = time.perf_counter()
        batches = epoch()
        next(batches)
        first[name] = time.perf_counter() - start
        for _ in batches:
            pass
    for turn in range(turns):
        for name, epoch in epochs.items():
            progress(f"turn {turn + 1} of {turns}: {name}")
            start, cpu = time.perf_counter(), _processor_seconds()
            seen = sum(epoch())
            times[name].append(seen / (time.perf_counter() - start))
            processor[name].append(1000 * (_processor_seconds() - cpu) / seen)
    progress("memory over 20 epochs")
    resident = _resident_over_epochs(epochs["tokenpool (ffcv)"], 20)
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
    process, sizes = psutil.Process(), []
    for _ in range(count):
        for _ in epoch():
            pass
        sizes.append(round(process.memory_info().rss / 2**20, 1))
    return sizes
