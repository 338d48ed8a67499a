"""How long models take: a saved one, and one of random weights block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

import tokenpool as tp
from pipelines.search.latency_table import LatencyTable
from pipelines.search.timing import median_ms
from pipelines.storage.copies import local_path
from tokenpool.patches import patches_of

_ROUNDS = 7
_SECONDS_PER_PAIR = 0.1


def measure_latency(
    path: str,
    device: str,
    batches: Sequence[int],
    *,
    num_threads: int,
    seconds: float = 0.5,
    compiled: bool = False,
) -> dict[str, float]:
    """Median milliseconds of a forward pass in fp32, by batch size.

    Args:
        path: a saved model, or its address.
        device: `cpu` or `cuda`.
        batches: images at a time.
        num_threads: threads torch computes with on a CPU.
        seconds: spent on each batch size, at least.
        compiled: for each batch size by itself, as its shapes are fixed.
    """
    torch.set_num_threads(num_threads)
    model = tp.load(local_path(path)).eval().to(device)
    height, width = patches_of(model).img_size or (0, 0)
    found = {}
    for batch in batches:
        images = torch.randn(batch, 3, height, width, device=device)
        forward = torch.compile(model, dynamic=False) if compiled else model
        with torch.inference_mode():
            took = median_ms(partial(forward, images), device, seconds=seconds)
        found[str(batch)] = round(took, 4)
    return found


def measure_table(
    spec: tp.VitSpec,
    patch_size: int,
    method: str,
    counts: Sequence[int],
    *,
    batch: int,
    device: str,
    num_threads: int,
) -> LatencyTable:
    """Measures a table: one and two blocks of the width, at each pair of counts.

    Args:
        spec: shapes of the model.
        patch_size: side of a patch in pixels.
        method: with its options.
        counts: ascending; the last is the number of patches.
        batch: images at a time.
        device: `cpu` or `cuda`.
        num_threads: threads torch computes with on a CPU.
    """
    torch.set_num_threads(num_threads)
    size = (spec.grid[0] * patch_size, spec.grid[1] * patch_size)
    shapes = (size, patch_size, spec.width)
    one, two = (
        tp.build_vit(*shapes, depth, spec.heads, spec.classes).eval().to(device) for depth in (1, 2)
    )
    images = torch.randn(batch, 3, *size, device=device)

    n = len(counts)
    pairs = [(i, j) for i in range(n) for j in range(i + 1)]
    wanted: list[tuple[torch.nn.Module, tuple[int, ...]]] = [(one, (c,)) for c in counts]
    wanted += [(two, (counts[i], counts[j])) for i, j in pairs]
    # Blocks are differences of passes, and other work on the machine slows it for stretches of
    # time: all are timed in turn, and the quickest turn of each is the one least disturbed.
    times = [math.inf] * len(wanted)
    for _ in range(_ROUNDS):
        for place, (model, schedule) in enumerate(wanted):
            tp.pool(model, schedule, method)
            with torch.inference_mode():
                took = median_ms(
                    partial(model, images), device, seconds=_SECONDS_PER_PAIR / _ROUNDS
                )
            times[place] = min(times[place], took)
    first = times[:n]
    blocks = np.zeros((n, n))
    for (i, j), took in zip(pairs, times[n:], strict=True):
        blocks[i, j] = max(took - first[i], 0.0)
    # What is around the blocks; noise may make it negative.
    rest = max(first[-1] - blocks[-1, -1], 0.0)
    # Noise must not make a block slower for less work: it would bar schedules at random.
    stays = np.maximum.accumulate(np.diagonal(blocks))
    pooled = np.tril(blocks, -1)
    rising = np.maximum.accumulate(np.maximum.accumulate(pooled, axis=0), axis=1)
    kept = np.tril(rising, -1) + np.diag(stays)
    return LatencyTable(
        tuple(counts), tuple(tuple(round(float(v), 5) for v in row) for row in kept), round(rest, 5)
    )
