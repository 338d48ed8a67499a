"""What pooled models need against the plain narrower one: the front of `bench search`, trained on.

`tokenpool bench search` trains each schedule for a fraction of an epoch. Here the schedules its
search found, and constant keep-rates of the wider models, are fine-tuned for whole epochs, and so
are the plain models: whoever is trained longer is better. Then costs are compared at equal top-1 on
val. (The paper's headline: 42 % fewer MACs at DeiT-Ti's accuracy.)

    python benchmarks/search_widths.py --out benchmarks/results/search-widths-glyphs.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

import tokenpool as tp
from pipelines.config_file import load_as
from pipelines.search.bench.config import BenchConfig
from pipelines.search.bench.world import World
from tokenpool.benchmark import hardware
from tune_spaces.space import Candidate

_SHARES = (0.45, 0.75)
_RATES = (0.5, 0.58)


def main() -> None:
    """Trains what is not in the cache; writes after each model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--config", type=Path, default="tune_spaces/presets/bench-glyphs.yaml")
    parser.add_argument("--found", type=Path, default="benchmarks/results/search-glyphs.json")
    parser.add_argument("--cache", type=Path, default="runs/bench-search")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    short = load_as(BenchConfig, given.config)
    train = short.finetune.model_copy(update={"epochs": given.epochs, "warmup_epochs": 0.5})
    config = short.model_copy(update={"finetune": train, "finetune_images": None})
    bases = World(short, given.cache, given.device, _say)
    world = World(config, given.cache, given.device, _say)
    for width in world.space.widths:
        name = f"base-w{width}-h{world.heads[width]}"
        bases.base(width)
        if not (world.directory / name).exists():
            shutil.copytree(bases.directory / name, world.directory / name)
    plain = [world.space.candidate(w, world.space.dense()) for w in world.space.widths[:-1]]
    pooled = _candidates(world, plain, json.loads(given.found.read_text()))
    rows: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        for candidate in [*plain, *pooled]:
            trained = world.finetune(candidate, seed)
            top1 = trained.val_top1(given.epochs)
            rows.append(
                {
                    "width": candidate.width,
                    "schedule": list(candidate.schedule),
                    "mmacs": round(1e3 * candidate.gmacs, 4),
                    "seed": seed,
                    "plain": candidate in plain,
                    "top1_val": round(top1, 4),
                }
            )
            _say(f"{rows[-1]}")
            _write(given, config, rows)


def _candidates(world: World, plain: list[Candidate], found: dict[str, Any]) -> list[Candidate]:
    """Of the fronts that were found, what costs about half of a plain model; and constant rates."""
    chosen = {}
    for trace in found["traces"]["ours"].values():
        for point in trace["front"]:
            candidate = world.space.candidate(point["width"], point["schedule"])
            shares = [candidate.gmacs / narrow.gmacs for narrow in plain]
            if any(_SHARES[0] <= share <= _SHARES[1] for share in shares):
                chosen[candidate.key] = candidate
    for narrow, wider in zip(plain, world.space.widths[1:], strict=True):
        for share in _RATES:
            candidate = _constant(world, wider, share * narrow.gmacs)
            chosen[candidate.key] = candidate
    return sorted(chosen.values(), key=lambda candidate: candidate.gmacs)


def _constant(world: World, width: int, gmacs: float) -> Candidate:
    """The dearest schedule of constant keep-rate within a cost."""
    depth, patches = world.space.depth, world.space.patches
    for percent in range(99, 5, -1):
        schedule = tp.Schedule.constant_rate(depth, patches, percent / 100)
        counts = [max(count, int(world.space.levels[0])) for count in schedule]
        candidate = world.space.candidate(width, counts)
        if candidate.gmacs <= gmacs:
            return candidate
    raise SystemExit(f"no constant keep-rate of width {width} costs {gmacs} GMACs or less")


def _savings(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each plain model, the cheapest pooled one that is as good on the mean over seeds."""
    means: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        key = (row["plain"], row["width"], tuple(row["schedule"]), row["mmacs"])
        means.setdefault(key, []).append(row["top1_val"])
    top1 = {key: sum(values) / len(values) for key, values in means.items()}
    found = []
    for key, accuracy in top1.items():
        if not key[0]:
            continue
        able = [k for k in top1 if not k[0] and top1[k] >= accuracy]
        best = min(able, key=lambda k: k[3], default=None)
        found.append(
            {
                "plain_width": key[1],
                "mmacs": key[3],
                "top1_val": round(accuracy, 4),
                "pooled": None
                if best is None
                else {
                    "width": best[1],
                    "schedule": list(best[2]),
                    "mmacs": best[3],
                    "top1_val": round(top1[best], 4),
                    "fewer": round(1 - best[3] / key[3], 4),
                },
            }
        )
    return found


def _write(given: argparse.Namespace, config: BenchConfig, rows: list[dict[str, Any]]) -> None:
    result = {
        **hardware(given.device),
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python {' '.join(sys.argv)}",
        "epochs": given.epochs,
        "data": config.name,
        "savings": _savings(rows),
        "rows": rows,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")


def _say(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")


if __name__ == "__main__":
    main()
