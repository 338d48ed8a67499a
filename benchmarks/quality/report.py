"""Tables and pictures as in the paper; a verdict only where an interval has one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.cells import DENSE, METHODS, SHAPES, Row, right_of
from benchmarks.quality.config import QualityConfig
from benchmarks.real.bootstrap import difference_interval

__all__ = ["draw", "markdown", "matched"]

Cells = dict[tuple[Any, ...], list[Row]]


def _grouped(rows: Iterable[Row], *names: str) -> Cells:
    """Rows by the values of these names; what is left in a group are the seeds."""
    groups: Cells = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def _mean(rows: Sequence[Row], key: str = "top1") -> float:
    return float(np.mean([row[key] for row in rows]))


def _spread(rows: Sequence[Row]) -> float:
    return float(np.std([row["top1"] for row in rows], ddof=1)) if len(rows) > 1 else 0.0


def _shown(rows: Sequence[Row]) -> str:
    return f"{100 * _mean(rows):.2f} ± {100 * _spread(rows):.2f}"


def _apart(rows: Sequence[Row], others: Sequence[Row]) -> tuple[float, float, float]:
    """Points of top-1 by which rows are ahead, of the seeds both have, with its interval."""
    both = sorted({r["seed"] for r in rows} & {r["seed"] for r in others})

    def right(group: Sequence[Row]) -> Any:
        by_seed = {row["seed"]: row for row in group}
        return np.stack([right_of(by_seed[seed]) for seed in both])

    mean, low, high = difference_interval(right(rows), right(others))
    return 100 * mean, 100 * low, 100 * high


def _difference(rows: Sequence[Row], others: Sequence[Row]) -> str:
    mean, low, high = _apart(rows, others)
    text = f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def _cut(names: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]


def markdown(config: QualityConfig, rows: Sequence[Row], facts: dict[str, Any]) -> str:
    """Everything as a page.

    Args:
        config: of the comparison.
        rows: of all cells measured so far.
        facts: of `benchmarks.machine.hardware`.
    """
    images, seeds = rows[0]["images"], len({row["seed"] for row in rows})
    lines = [
        f"# Methods and schedules, fine-tuned alike: {config.name}",
        "",
        f"Top-1 in % on {images} images of val, mean ± standard deviation over seeds of the "
        f"fine-tuning ({seeds}), which share base and K; differences in points with a 95 % "
        "interval, paired, over images" + (" and seeds" if seeds > 1 else "") + ", **bold where it "
        "leaves out zero** (of so many cells one in twenty would do so by chance). All are "
        f"fine-tuned alike (epochs: {config.finetune.epochs}), the dense model too. "
        f"{facts['hardware']}, torch {facts['torch']}, timm {facts['timm']}, {facts['date'][:10]}. "
        f"Made by `{facts['command']}`.",
    ]
    for width in sorted({row["width"] for row in rows}, reverse=True):
        mine = [row for row in rows if row["width"] == width]
        dense = [row for row in mine if row["part"] == DENSE]
        lines += ["", f"## Width {width}"]
        if dense:
            lines += [
                "",
                f"Dense, fine-tuned as long: {_shown(dense)} % at {dense[0]['gmacs']:.4g} GMACs "
                f"(before: {100 * _mean(dense, 'top1_untrained'):.2f} %).",
            ]
        lines += _methods(config, mine) + _shapes(config, mine, dense)
    lines += _widths(rows)
    return "\n".join(lines) + "\n"


def _methods(config: QualityConfig, rows: Sequence[Row]) -> list[str]:
    of = [row for row in rows if row["part"] == METHODS]
    cells = _grouped(of, "method", "share")
    shares = sorted({share for _, share in cells})
    if not shares:
        return ["", f"No schedule from {config.k_from} comes within any of these costs."]
    heads = [f"{100 * share:.0f} %" for share in shares]
    lines = ["", f"### At equal K, from {config.k_from}", ""]
    lines += [
        "; ".join(
            f"{head}: {next(r['schedule'] for r in of if r['share'] == share)}"
            for head, share in zip(heads, shares, strict=True)
        )
        + " (shares of the dense MACs, clustering not counted).",
        "",
        *_cut(["method", *heads]),
    ]
    for method in config.methods:
        found = [cells.get((method, share)) for share in shares]
        texts = [_shown(c) + ("" if _keeps(c) else " †") if c else "–" for c in found]
        lines.append(f"| `{method}` | " + " | ".join(texts) + " |")
    if not all(map(_keeps, cells.values())):
        lines += ["", "† keeps more than these K where it cannot merge so many in a layer."]
    lines += ["", "Before fine-tuning:", "", *_cut(["method", *heads])]
    for method in config.methods:
        found = [cells.get((method, share)) for share in shares]
        texts = [f"{100 * _mean(c, 'top1_untrained'):.2f}" if c else "–" for c in found]
        lines.append(f"| `{method}` | " + " | ".join(texts) + " |")
    lines += ["", "Against others, at equal K, in points:", "", *_cut(["", *heads])]
    for one, other in _pairs(config.methods):
        texts = []
        for share in shares:
            mine, theirs = cells.get((one, share)), cells.get((other, share))
            equal = mine and theirs and _keeps(mine) and _keeps(theirs)
            texts.append(_difference(mine or [], theirs or []) if equal else "–")
        lines.append(f"| `{one}` − `{other}` | " + " | ".join(texts) + " |")
    return lines


def _keeps(rows: Sequence[Row]) -> bool:
    """Whether a method has kept as many tokens as it was told to, and no more."""
    return all(row["realised"] == row["schedule"] for row in rows)


def _pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    """The paper's claims, and ours."""
    wanted = [
        ("wkmedoids", "powerbert"),
        ("wkmedoids", "importance"),
        ("wkmedoids", "random"),
        ("wkmedoids", "kmedoids"),
        ("wkmeans", "kmeans"),
        ("wkmedoids", "wkmeans"),
        ("leader", "wkmedoids"),
        ("leader", "tome"),
        ("leader", "tome(position=attention)"),
    ]
    return [pair for pair in wanted if set(pair) <= set(methods)]


def _shapes(config: QualityConfig, rows: Sequence[Row], dense: Sequence[Row]) -> list[str]:
    cells = _grouped((row for row in rows if row["part"] == SHAPES), "shape", "share")
    shares = sorted({share for _, share in cells})
    if not shares:
        return []
    heads = [f"{100 * share:.0f} %" for share in shares]
    lines = ["", f"### Schedules, by `{config.shaped}`, clustering counted", ""]
    lines += _cut(["schedule", *heads, *(f"{head} − dense" for head in heads)])
    for shape in config.shapes:
        found = [cells.get((shape, share)) for share in shares]
        tops = [f"{_shown(c)} at {c[0]['gmacs']:.4g} GMACs" if c else "–" for c in found]
        apart = [_difference(c, dense) if c and dense else "–" for c in found]
        lines.append(f"| {shape} | " + " | ".join(tops + apart) + " |")
    return lines


def matched(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each narrower dense model the cheapest wider pooled one, less dear and as accurate.

    "As accurate" is of means over seeds on minival, so that the figure on val, which stands beside
    it with its interval, is not that of the luckiest of many.
    """
    found = []
    dense = _grouped((r for r in rows if r["part"] == DENSE), "width")
    pooled = _grouped(
        (r for r in rows if r["part"] != DENSE), "width", "method", "part", "schedule"
    )
    for (width,), plain in sorted(dense.items()):
        as_good = [
            group
            for (wide, *_), group in pooled.items()
            if wide > width
            and group[0]["gmacs"] < plain[0]["gmacs"]
            and _mean(group, "top1_minival") >= _mean(plain, "top1_minival")
        ]
        if not as_good:
            if width < max(w for (w,) in dense):
                found.append({"width": width, "gmacs": plain[0]["gmacs"], "by": None})
            continue
        best = min(as_good, key=lambda group: group[0]["gmacs"])
        mean, low, high = _apart(best, plain)
        found.append(
            {
                "width": width,
                "gmacs": plain[0]["gmacs"],
                "by": best[0]["width"],
                "method": best[0]["method"],
                "schedule": best[0]["schedule"],
                "by_gmacs": best[0]["gmacs"],
                "fewer": round(1 - best[0]["gmacs"] / plain[0]["gmacs"], 4),
                "points": [round(x, 3) for x in (mean, low, high)],
            }
        )
    return found


def _widths(rows: Sequence[Row]) -> list[str]:
    found = matched(rows)
    if not found:
        return []
    lines = ["", "## Wider and pooled against plain and narrower, fine-tuned alike", ""]
    lines += _cut(["plain width", "GMACs", "cheapest as accurate", "GMACs", "fewer", "points"])
    for row in found:
        if row["by"] is None:
            lines.append(f"| {row['width']} | {row['gmacs']:.4g} | none | – | – | – |")
            continue
        mean, low, high = row["points"]
        lines.append(
            f"| {row['width']} | {row['gmacs']:.4g} | width {row['by']}, `{row['method']}`, "
            f"{row['schedule']} | {row['by_gmacs']:.4g} | {row['fewer']:.1%} | {mean:+.2f} "
            f"({low:+.2f} to {high:+.2f}) |"
        )
    return lines


def draw(config: QualityConfig, rows: Sequence[Row], path: Path) -> None:
    """The paper's two figures: methods at one width (left), the best over widths (right)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    widest = max(row["width"] for row in rows)
    dense = _grouped((r for r in rows if r["part"] == DENSE), "width")
    ours = [r for r in rows if r["part"] == METHODS]
    for method in config.methods:
        mine = [r for r in ours if r["method"] == method]
        here = _grouped((r for r in mine if r["width"] == widest), "share")
        if here:
            _line(left, list(here.values()), method)
        every = _grouped(mine, "width", "share")
        best: list[list[Row]] = []
        for group in sorted(every.values(), key=lambda g: g[0]["gmacs"]):
            if not best or _mean(group) > _mean(best[-1]):
                best.append(group)
        if best:
            _line(right, best, method)
    for axis, title in ((left, f"width {widest}"), (right, "best over widths")):
        groups = [g for (w,), g in dense.items() if axis is right or w == widest]
        if groups:
            _line(axis, groups, "plain width" if axis is right else "dense", color="black")
        axis.set_xlabel("GMACs of an image, clustering counted")
        axis.set_ylabel("top-1 on val, %")
        axis.set_title(f"{config.name}: {title}")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    right.set_xscale("log")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _line(axis: Any, groups: Sequence[Sequence[Row]], label: str, **style: Any) -> None:
    points = sorted((g[0]["gmacs"], 100 * _mean(g), 100 * _spread(g)) for g in groups)
    costs, tops, spreads = zip(*points, strict=True)
    axis.errorbar(costs, tops, yerr=spreads, marker="o", ms=3, capsize=2, label=label, **style)
