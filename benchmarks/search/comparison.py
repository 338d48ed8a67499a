"""One bench from its configuration to its result."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import hardware
from benchmarks.search import present
from benchmarks.search.config import BenchConfig
from benchmarks.search.report import Box, Saving, front, savings, table
from benchmarks.search.run import CONTENDERS, OURS, Traces, run
from benchmarks.search.world import World
from pipelines.errors import UserError

_LEAST_TIMES_CHANCE = 2.0


def bench(
    config: BenchConfig,
    *,
    cache: Path,
    out: Path,
    device: str,
    names: Sequence[str],
    say: Callable[[str], None],
) -> tuple[dict[str, Any], list[Path]]:
    """Runs what is not in the cache, and writes the results.

    Args:
        config: world and budgets.
        cache: where bases and answers are kept.
        out: where the results are written.
        device: "cpu" or "cuda".
        names: contenders, of `CONTENDERS`.
        say: told what was done.

    Returns:
        The result as JSON types, and the files written.

    Raises:
        UserError: a contender that does not exist, or a base that does not learn.
    """
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        raise UserError(f"no contender {unknown[0]!r}: use {', '.join(CONTENDERS)}")
    if device == "cpu":
        # CPU seconds of one thread are the same on a busy machine; of several they are not.
        torch.set_num_threads(1)
    world = World(config, cache, device, say)
    bases = tuple(world.base_point(width) for width in world.space.widths)
    for point in bases:
        if point.top1 < _LEAST_TIMES_CHANCE / world.pictures.num_classes:
            raise UserError(
                f"the base of width {point.width} does not learn (top-1 on minival "
                f"{point.top1:.1%}): change base.lr or base.epochs",
                exit_code=1,
            )
    say(f"bases: {world.base_seconds:.0f} device-seconds; answers in {world.directory}")
    traces = run(world, say, names=names)
    cheapest = min(low for low, _ in world.space.cost_ranges.values())
    box = Box(
        world.reference_gmacs, config.top1_floor, bases, cheapest if config.log_cost else None
    )
    rows = table(box, traces)
    saved = _savings(world, box, traces, say) if OURS in traces else []
    about = {
        "name": config.name,
        "command": f"tokenpool bench search {' '.join(sys.argv[3:])}".rstrip(),
        **hardware(device),
        "date": time.strftime("%Y-%m-%d"),
        "device_seconds": "the process's CPU seconds, one thread"
        if device == "cpu"
        else "wall-clock of the GPU, synchronised",
        "config": config.model_dump(mode="json"),
    }
    result = present.as_json(about, box, traces, rows, saved, world.base_seconds)
    return result, present.write(out, result, rows, saved, box, traces)


def _savings(world: World, box: Box, traces: Traces, say: Callable[[str], None]) -> list[Saving]:
    """Our fronts and the plain models on val, looked at once and by nobody before."""
    seeds = list(traces[OURS])
    last = world.config.finetune.epochs
    widest = max(world.space.widths)
    plain: dict[int, tuple[float, list[float]]] = {}
    for width in world.space.widths:
        if width == widest:
            continue
        dense = world.space.candidate(width, world.space.dense())
        # What pooled models gain by more training, a plain one is given as well.
        accuracies = [
            max(world.base_val(width), world.finetune(dense, seed).val_top1(last)) for seed in seeds
        ]
        plain[width] = dense.gmacs, accuracies
        say(f"plain width {width} on val: {', '.join(f'{value:.2%}' for value in accuracies)}")
    fronts = []
    for seed in seeds:
        points = []
        for point in front(box, traces[OURS][seed]):
            if point.epoch == 0:
                top1 = world.base_val(point.width)
            else:
                candidate = world.space.candidate(point.width, point.schedule)
                top1 = world.finetune(candidate, seed).val_top1(point.epoch)
            points.append((point.gmacs, top1))
        fronts.append(points)
        say(f"seed {seed}: our front's {len(points)} points on val")
    return savings(plain, fronts)
