"""The comparison of `tokenpool bench search real`: who is ahead at which cost, and a picture."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import hardware
from benchmarks.real.bootstrap import ratio_interval
from benchmarks.search.steps import Point
from benchmarks.search.untrained import CONTENDERS, OURS, RealConfig, RealWorld, Say, found_by
from pipelines.errors import UserError

__all__ = ["bench_real"]


def bench_real(
    config: RealConfig, *, cache: Path, out: Path, device: str, names: Sequence[str], say: Say
) -> tuple[dict[str, Any], list[Path]]:
    """Runs what is not in the cache, and writes `search-real.json`, `.md` and `.png`.

    Raises:
        UserError: a contender that does not exist.
    """
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        raise UserError(f"no contender {unknown[0]!r}: use {', '.join(CONTENDERS)}")
    world = RealWorld(config, cache, device, say)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS if name in names}
    rows = {OURS: [], **rows}
    judged: dict[str, list[list[NDArray[np.float64] | None]]] = {name: [] for name in rows}
    for seed in seeds:
        budget = float("inf")
        for name in rows:
            points, macs = found_by(world, name, seed, budget)
            if name == OURS:
                budget = macs
            best = [_best(points, share * world.dense_gmacs) for share in config.costs]
            judged[name].append([None if b is None else world.judged(b.schedule) for b in best])
            rows[name].append(
                {
                    "seed": seed,
                    "gmacs_spent": round(macs / 1e9, 1),
                    "schedules": [None if b is None else list(b.schedule) for b in best],
                    "chosen_by": [None if b is None else round(-b.top1, 5) for b in best],
                }
            )
            say(f"seed {seed}: {name}: {len(points)} schedules in {macs / 1e12:.1f} TMACs")
    result = {
        "name": config.name,
        "command": f"tokenpool bench search {' '.join(sys.argv[3:])}".rstrip(),
        **hardware(device),
        "date": time.strftime("%Y-%m-%d"),
        "world": world.name,
        "config": config.model_dump(mode="json"),
        "costs": list(config.costs),
        "contenders": {
            name: {
                "runs": rows[name],
                "kl": [_mean(column) for column in zip(*judged[name], strict=True)],
                "ours_to_it": None if name == OURS else _ratios(judged[OURS], judged[name]),
            }
            for name in rows
        },
    }
    return result, _written(result, out)


def _best(points: Sequence[Point], most: float) -> Point | None:
    """Of those within a cost, the one of least divergence on minival."""
    within = [point for point in points if point.gmacs <= most * (1 + 1e-9)]
    return max(within, key=lambda point: point.top1, default=None)


def _pooled(column: Sequence[NDArray[np.float64] | None]) -> NDArray[np.float64] | None:
    """`[images]`, each the mean over the seeds; None where a seed found nothing."""
    known = [values for values in column if values is not None]
    return np.mean(known, axis=0) if len(known) == len(column) else None


def _mean(column: Sequence[NDArray[np.float64] | None]) -> float | None:
    pooled = _pooled(column)
    return None if pooled is None else round(float(pooled.mean()), 5)


def _ratios(
    mine: Sequence[Sequence[NDArray[np.float64] | None]],
    other: Sequence[Sequence[NDArray[np.float64] | None]],
) -> list[list[float] | None]:
    """At each cost our divergence by the other's, with its 95 % interval over the pictures."""
    found: list[list[float] | None] = []
    for ours, theirs in zip(zip(*mine, strict=True), zip(*other, strict=True), strict=True):
        a, b = _pooled(ours), _pooled(theirs)
        ratio = None if a is None or b is None else ratio_interval(a, b)
        found.append(None if ratio is None else [round(value, 3) for value in ratio])
    return found


def _written(result: dict[str, Any], out: Path) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"search-{result['name']}.{kind}" for kind in ("json", "md", "png")]
    files[0].write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    files[1].write_text(_markdown(result), encoding="utf-8")
    _draw(result, files[2])
    return files


def _markdown(result: dict[str, Any]) -> str:
    costs = result["costs"]
    lines = [
        f"# Schedules of a trained ViT, found without training ({result['world']} px)",
        "",
        f"`{result['command']}`, {result['date']}, {result['hardware']}. KL to the dense model on "
        f"{result['config']['judged_on']} pictures of val, mean of {result['config']['seeds']} "
        "seeds; in brackets ours by the other's with its 95 % interval over the pictures: bold "
        "where it excludes 1.",
        "",
        "| of the MACs | " + " | ".join(f"{share:.0%}" for share in costs) + " |",
        "|---|" + "---|" * len(costs),
    ]
    for name, entry in result["contenders"].items():
        cells = []
        for place, kl in enumerate(entry["kl"]):
            ratio = None if entry["ours_to_it"] is None else entry["ours_to_it"][place]
            text = "" if kl is None else f"{kl:.3f}"
            if ratio is not None:
                sure = ratio[2] < 1 or ratio[1] > 1
                words = f"{ratio[0]:.2f}, {ratio[1]:.2f}–{ratio[2]:.2f}"
                text += f" (**{words}**)" if sure else f" ({words})"
            cells.append(text)
        spent = np.median([run["gmacs_spent"] for run in entry["runs"]]) / 1e3
        lines.append(f"| {name}, {spent:.1f} TMACs | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _draw(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, entry in result["contenders"].items():
        known = [(s, kl) for s, kl in zip(result["costs"], entry["kl"], strict=True) if kl]
        axes.plot(
            [100 * share for share, _ in known],
            [kl for _, kl in known],
            marker="o",
            label=name,
            linewidth=2.5 if name == OURS else 1,
        )
    axes.set(xlabel="% of the dense MACs", ylabel="KL to the dense model", yscale="log")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
