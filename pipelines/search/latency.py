"""How long a saved model takes, measured where nothing else of the search runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import tokenpool as tp

BATCHES = {"cpu": (1, 32), "cuda": (1, 32, 128)}
_WARM_UP, _LEAST_RUNS = 2, 5


def measure_latency(
    path: str, device: str, batches: Sequence[int], *, num_threads: int, seconds: float = 0.5
) -> dict[str, float]:
    """Median milliseconds of a forward pass in fp32, not compiled, by batch size.

    Args:
        path: a saved model.
        device: `cpu` or `cuda`.
        batches: images at a time.
        num_threads: threads torch computes with on a CPU.
        seconds: spent on each batch size, at least.
    """
    torch.set_num_threads(num_threads)
    model = tp.load(Path(path)).eval().to(device)
    height, width = model.patch_embed.img_size
    found = {}
    for batch in batches:
        images = torch.randn(batch, 3, height, width, device=device)
        times: list[float] = []
        with torch.inference_mode():
            for _ in range(_WARM_UP):
                model(images)
            deadline = time.perf_counter() + seconds
            while len(times) < _LEAST_RUNS or time.perf_counter() < deadline:
                _wait_for(device)
                start = time.perf_counter()
                model(images)
                _wait_for(device)
                times.append(time.perf_counter() - start)
        found[str(batch)] = round(1000 * statistics.median(times), 4)
    return found


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
