"""Which measure without training orders schedules as training does.

    python -m benchmarks.search.ordering digits --cache runs/bench-search --out FILE

Of all schedules that a bench (`tokenpool bench search`, in the same cache) trained to their end,
each is scored untrained on parts of minival: by cross-entropy, by top-1, and by the divergence
from the dense model. Kendall's τ of each with the trained top-1 (mean over the seeds that have it),
and with what the same weights make of val. Only pairs of one width whose costs are within a tenth
count: which of two costs is the greater, everybody knows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tokenpool as tp
from benchmarks.machine import command_line, hardware
from benchmarks.search.config import BenchConfig
from benchmarks.search.world import World
from pipelines.commands.bench_search_command import config_file
from pipelines.config_file import load_as
from pipelines.search.scorer import Measure, Scorer

_NEAR = 0.1
_PARTS = (32, 64, 128, 256)

Schedule = tuple[int, ...]


def tau(
    scores: Sequence[float], truths: Sequence[float], costs: Sequence[float]
) -> tuple[float, int]:
    """Kendall's τ over the pairs of nearly equal cost, and how many these are.

    Args:
        scores: the lower the better.
        truths: the higher the better.
        costs: in any unit.
    """
    found, pairs = 0.0, 0
    for i, j in combinations(range(len(scores)), 2):
        if abs(np.log(costs[i] / costs[j])) < _NEAR and truths[i] != truths[j]:
            found -= np.sign(scores[i] - scores[j]) * np.sign(truths[i] - truths[j])
            pairs += 1
    return (found / pairs if pairs else float("nan")), pairs


def trained(world: World) -> dict[int, dict[Schedule, float]]:
    """By width and schedule, the top-1 on minival at the end, mean over the seeds that have it."""
    last = world.config.finetune.epochs
    known: dict[int, dict[Schedule, list[float]]] = defaultdict(lambda: defaultdict(list))
    for text, value in world.cache.items():
        what, *key = json.loads(text)
        if what == "measured" and key[-1] == last:
            known[key[0]][tuple(key[2])].append(value["top1"])
    return {
        width: {schedule: float(np.mean(values)) for schedule, values in rows.items()}
        for width, rows in known.items()
    }


def ordering(world: World, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each width, measure and number of images."""
    rows = []
    for width, known in trained(world).items():
        schedules = [s for s in known if min(s) < world.space.patches]
        costs = [world.cost(width, tp.Schedule(s)) for s in schedules]
        scorer: Scorer = world._scorer(width)
        method, everything = world.config.method, scorer.num_images()
        held_out = scorer.compare(width, schedules, method, "val")
        truths = {
            "trained top-1": [known[s] for s in schedules],
            "divergence on val": [-float(seen.divergence.mean()) for seen in held_out],
        }
        measures: tuple[Measure, ...] = ("cross-entropy", "divergence")
        seen = {
            m: scorer.image_scores(width, schedules, method, 0, everything, m) for m in measures
        }
        for images in sorted({min(part, everything) for part in _PARTS}):
            scores: dict[str, list[float]] = {
                m: [float(losses[:images].mean(dtype=np.float64)) for losses, _ in found]
                for m, found in seen.items()
            }
            scores["top-1"] = [-float(r[:images].mean()) for _, r in seen["cross-entropy"]]
            for measure, values in scores.items():
                row: dict[str, Any] = {"width": width, "images": images, "measure": measure}
                for name, truth in truths.items():
                    value, pairs = tau(values, truth, costs)
                    row[name], row["pairs"] = round(value, 3), pairs
                rows.append(row)
        say(f"width {width}: {len(schedules)} schedules")
    return rows


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("world", help="digits, glyphs, or a YAML file")
    parser.add_argument("--cache", type=Path, default=Path("runs/bench-search"))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    config = load_as(BenchConfig, config_file(asked.world), None)
    world = World(config, asked.cache, "cpu", lambda text: print(text, file=sys.stderr))
    rows = ordering(world, lambda text: print(text, file=sys.stderr))
    about = {"command": command_line(), **hardware("cpu"), "date": time.strftime("%Y-%m-%d")}
    for row in rows:
        print(json.dumps(row))
    if asked.out is not None:
        asked.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
