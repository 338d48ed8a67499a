"""A short timing of what a search does most: training steps, forward passes, decoding."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from pipelines.config import SearchConfig, TrainConfig, WorkersConfig
from pipelines.data.augment import DeviceAugment, normalize, step_generator
from pipelines.data.loader import make_loader
from pipelines.data.manifest import Manifest, load_manifest
from pipelines.search.job_specs import base_job
from pipelines.search.search_space import make_space
from pipelines.search.timing import seconds_of
from pipelines.train.engine import make_optimizer, plain_step
from pipelines.train.model import build_model
from pipelines.train.spec import TrainJob
from tune_spaces.space import Candidate

Range = tuple[float, float]

_SMALLEST, _MOST_RUNS, _LEAST_RUNS = 8, 20, 3
_LOADER_SHARE = 0.15
_DRAWN = 33


@dataclass(frozen=True)
class Rates:
    """Seconds per image of one width, each as what the fastest and a slow run took.

    Attributes:
        train_dense: a training step of the dense model.
        train_pooled: of a schedule of middling cost.
        score_dense: a forward pass of the dense model.
        score_pooled: of that schedule.
    """

    train_dense: Range
    train_pooled: Range
    score_dense: Range
    score_pooled: Range


@dataclass(frozen=True)
class Probe:
    """What a probe found.

    Attributes:
        device: it ran on: `cpu` or `cuda`.
        seconds: it took.
        rates: by width.
        decode: seconds per image of the loader with its threads; None if that cannot be told.
    """

    device: str
    seconds: float
    rates: dict[int, Rates]
    decode: float | None


def probe(config: SearchConfig, seconds: float) -> Probe:
    """Times training and scoring of every width in this process; writes nothing.

    Weights are random: that changes no time. Batches grow up to the configured ones as long as
    the time allows it.

    Args:
        config: of the search; its data must be prepared.
        seconds: to take, about.

    Raises:
        UserError: there is no prepared data, or no schedule within the bounds.
    """
    begun = time.perf_counter()
    manifest = load_manifest(config.data.path)
    on_gpu = config.finals.workers.gpus_per_worker > 0 and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    decode = _decode_seconds(config, _LOADER_SHARE * seconds)
    slot = (seconds - (time.perf_counter() - begun)) / (4 * len(config.space.widths))
    threads = torch.get_num_threads()
    try:
        rates = {
            width: _rates(config, manifest, width, candidate, device, slot)
            for width, candidate in _middling(config, manifest).items()
        }
    finally:
        torch.set_num_threads(threads)
    return Probe(device.type, time.perf_counter() - begun, rates, decode)


def _middling(config: SearchConfig, manifest: Manifest) -> dict[int, Candidate]:
    """A candidate of middling cost for each width that has any; the first one's else."""
    space = make_space(config, len(manifest.classes))
    found = {}
    for width in dict.fromkeys(arm[0] for arm in space.cost_ranges):
        drawn = space.sample(np.random.default_rng(config.seed), _DRAWN, width=width)
        found[width] = sorted(drawn, key=lambda candidate: candidate.gmacs)[_DRAWN // 2]
    return found


def _rates(
    config: SearchConfig,
    manifest: Manifest,
    width: int,
    candidate: Candidate,
    device: torch.device,
    slot: float,
) -> Rates:
    classes = len(manifest.classes)
    shape = next(w for w in config.space.widths if w.width == width)
    dense = base_job(config, shape, classes)
    finals = config.finals
    pooled = dense.model_copy(
        update={
            "schedule": tuple(candidate.schedule),
            "method": candidate.method,
            "train": finals.train,
            "workers": finals.workers,
        }
    )
    return Rates(
        _train_seconds(dense, manifest, device, slot),
        _train_seconds(pooled, manifest, device, slot),
        _score_seconds(dense, config, device, slot),
        _score_seconds(pooled, config, device, slot),
    )


def _train_seconds(
    job: TrainJob, manifest: Manifest, device: torch.device, seconds: float
) -> Range:
    train, size = job.train, job.model.image_size
    torch.set_num_threads(job.workers.threads_per_worker)
    model = build_model(job).to(device).train()
    optimizer = make_optimizer(model, train)
    augment = DeviceAugment(
        train.augment, mean=manifest.mean, std=manifest.std, num_classes=job.model.num_classes
    )

    def step(batch: int) -> None:
        images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
        labels = torch.randint(0, job.model.num_classes, (batch,), device=device)
        inputs, targets = augment(images, labels, step_generator(0, 0, 0))
        plain_step(model, optimizer, train, inputs, targets)

    return seconds_per_image(step, _micro_batch(train, job.workers), seconds, device.type)


def _score_seconds(
    job: TrainJob, config: SearchConfig, device: torch.device, seconds: float
) -> Range:
    size = job.model.image_size
    torch.set_num_threads(1 if device.type == "cpu" else torch.get_num_threads())
    model = build_model(job).to(device).eval()

    def score(batch: int) -> None:
        with torch.inference_mode():
            images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
            model(normalize(images, (0.5,) * 3, (0.25,) * 3))

    return seconds_per_image(score, config.screen.batch_size, seconds, device.type)


def seconds_per_image(run: Callable[[int], None], most: int, seconds: float, device: str) -> Range:
    """What one image takes: in the fastest run, and in all but the slowest tenth of the runs.

    Args:
        run: computes a batch of so many images.
        most: images of the largest batch of interest; smaller ones are taken where it would take
            too long, or does not fit the memory.
        seconds: to take.
        device: that computes.
    """

    def timed(batch: int) -> float:
        return seconds_of(lambda: run(batch), device)

    end = time.perf_counter() + seconds
    batch = min(_SMALLEST, most)
    timed(batch)  # the first one also loads and compiles
    took = timed(batch)
    while batch < most and _LEAST_RUNS * 2 * took < end - time.perf_counter():
        larger = min(2 * batch, most)
        try:
            timed(larger)  # memory is given out
            took = timed(larger)
        except torch.OutOfMemoryError:
            break
        batch = larger
    times = [took]
    while len(times) < _LEAST_RUNS or (len(times) < _MOST_RUNS and time.perf_counter() < end):
        times.append(timed(batch))
    return min(times) / batch, float(np.quantile(times, 0.9)) / batch


def _micro_batch(train: TrainConfig, workers: WorkersConfig) -> int:
    share = train.batch_size // workers.num_workers // train.accumulate
    return max(1, min(share, train.micro_batch or share))


def _decode_seconds(config: SearchConfig, seconds: float) -> float:
    """What the loader takes for a training image once it runs."""
    job = config.finals
    loader = make_loader(
        config.data.path,
        "train",
        batch_size=_micro_batch(job.train, job.workers),
        train=True,
        image_size=config.data.image_size,
        num_threads=config.data.loader_threads,
        implementation=config.data.loader,
    )
    try:
        batches = iter(loader)
        next(batches)  # compiles
        begun, images = time.perf_counter(), 0
        for pixels, _ in islice(batches, 1000):
            images += len(pixels)
            if time.perf_counter() - begun > seconds:
                break
        return (time.perf_counter() - begun) / images if images else 0.0
    finally:
        loader.close()
