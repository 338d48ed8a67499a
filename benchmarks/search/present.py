"""The bench's results as files: JSON with everything, a table for people, a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search.report import Box, Row, Saving, cost_grid, curve, front, heights
from benchmarks.search.run import OURS, RANDOM, Traces

_COLOURS = (
    "#d62728", "#7f7f7f", "#bcbd22", "#8c564b", "#1f77b4", "#17becf", "#9467bd", "#2ca02c",
)  # fmt: skip
_MOST_SHARE = 0.1
_LEAST_SAVING = 0.42


def as_json(
    about: dict[str, Any],
    box: Box,
    traces: Traces,
    rows: Sequence[Row],
    savings: Sequence[Saving],
    base_seconds: float,
) -> dict[str, Any]:
    """Everything the table and the picture are made of."""
    return {
        **about,
        "reference": {"gmacs": box.gmacs, "top1_floor": box.floor},
        "base_seconds": base_seconds,
        "bases": [asdict(point) for point in box.bases],
        "claims": claims(rows, savings),
        "contenders": [asdict(row) for row in rows],
        "savings": [asdict(saving) for saving in savings],
        "traces": {
            name: {
                str(seed): {
                    "seconds_by_kind": _by_kind(steps),
                    "seconds": [round(float(t), 3) for t in curve(box, steps).seconds],
                    "hypervolume": [round(float(h), 5) for h in curve(box, steps).hypervolume],
                    "front": [asdict(point) for point in front(box, steps)],
                }
                for seed, steps in runs.items()
            }
            for name, runs in traces.items()
        },
    }


def claims(rows: Sequence[Row], savings: Sequence[Saving]) -> list[dict[str, Any]]:
    """The sentences the search is held to, each with what was found."""
    by_name = {row.name: row for row in rows}
    found: list[dict[str, Any]] = []
    if OURS in by_name:
        shares = by_name[OURS].share_of_random
        known = [share for share in shares if share is not None]
        found.append(
            {
                "claim": "ours reaches random search's final hypervolume for at most a tenth of "
                "its device-seconds",
                "holds": len(known) == len(shares) and float(np.mean(known)) <= _MOST_SHARE,
                "found": ", ".join("never" if s is None else f"{s:.1%}" for s in shares),
            }
        )
        peers = [row for row in rows if row.name != OURS]
        above = [
            f"{row.name} by {100 * row.excess_top1:.2f} points at {row.excess_at:.4g} GMACs"
            for row in peers
            if row.excess_at is not None
        ]
        found.append(
            {
                "claim": "no peer's front is above ours at any cost within the noise of the seeds",
                "holds": not above,
                "found": "; ".join(above) or "none is",
            }
        )
        early = [
            f"{row.name} by {row.excess_seconds:.4f}" for row in peers if row.excess_seconds > 0
        ]
        found.append(
            {
                "claim": "no peer's hypervolume is above ours at any number of device-seconds "
                "within the noise of the seeds",
                "holds": not early,
                "found": "; ".join(early) or "none is",
            }
        )
    for saving in savings:
        known = [value for value in saving.saved if value is not None]
        found.append(
            {
                "claim": f"at the val top-1 of the plain model of width {saving.width} the front "
                f"needs at least {_LEAST_SAVING:.0%} fewer GMACs",
                "holds": len(known) == len(saving.saved) and float(np.mean(known)) >= _LEAST_SAVING,
                "found": ", ".join(
                    "as accurate nowhere" if s is None else f"{s:.1%} fewer" for s in saving.saved
                ),
            }
        )
    return found


def as_markdown(result: dict[str, Any], rows: Sequence[Row], savings: Sequence[Saving]) -> str:
    """The table for people."""
    base = result["base_seconds"]
    random = next(row for row in rows if row.name == RANDOM)
    budget = float(np.mean(random.seconds))
    lines = [
        f"# Search efficiency on {result['name']}",
        "",
        f"`{result['command']}`, {result['hardware']}, {result['date']}. "
        f"{len(random.seconds)} seeds. Device-seconds: {result['device_seconds']}.",
        "",
        f"Hypervolume: share of the box from 0 to {result['reference']['gmacs']:.4g} GMACs (the "
        f"widest dense model) and from {result['reference']['top1_floor']:.0%} to 100 % top-1 on "
        "minival. Everybody starts with the dense bases, which took "
        f"{base:.0f} device-seconds and are not counted in the table; the last column counts them "
        "for everybody.",
        "",
        "| | device-seconds | models | final hypervolume | reaches random's final one after | "
        "share of random's | with bases |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = [time for time in row.time_to_random if time is not None]
        always = len(times) == len(row.time_to_random)
        after = f"{np.mean(times):.1f} s" if times else "never"
        if times and not always:
            after += f" ({len(times)} of {len(row.time_to_random)} seeds)"
        share = f"{np.mean(times) / budget:.1%}" if times and always else "–"
        total = f"{(base + np.mean(times)) / (base + budget):.1%}" if times and always else "–"
        lines.append(
            f"| {row.name} | {np.mean(row.seconds):.1f} | {np.mean(row.models):.0f} | "
            f"{np.mean(row.hypervolume):.4f} ± {_spread(row.hypervolume):.4f} | {after} | {share} "
            f"| {total} |"
        )
    lines += ["", "| claim | holds | found |", "|---|---|---|"]
    lines += [
        f"| {claim['claim']} | {'yes' if claim['holds'] else '**no**'} | {claim['found']} |"
        for claim in result["claims"]
    ]
    if savings:
        lines += [
            "",
            "| plain width | GMACs | top-1 on val | our front's cheapest at that top-1 | saved |",
            "|---|---|---|---|---|",
        ]
        for saving in savings:
            costs = ", ".join("–" if g is None else f"{g:.4g}" for g in saving.gmacs_front)
            saved = ", ".join("–" if s is None else f"{s:.1%}" for s in saving.saved)
            top1 = ", ".join(f"{value:.2%}" for value in saving.top1_val)
            lines.append(f"| {saving.width} | {saving.gmacs:.4g} | {top1} | {costs} | {saved} |")
    return "\n".join([*lines, "", f"![Curves]({result['picture']})", ""])


def draw(path: Path, title: str, box: Box, traces: Traces) -> None:
    """Hypervolume against device-seconds, and the fronts at the end; lines are means over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    costs = cost_grid(box)
    for (name, runs), colour in zip(traces.items(), _COLOURS, strict=False):
        width = 2.4 if name == OURS else 1.3
        curves = [curve(box, steps) for steps in runs.values()]
        until = min(float(c.seconds[-1]) for c in curves)
        first = min(float(c.seconds[1]) for c in curves)
        moments = np.geomspace(max(first, 1e-3), max(until, first), 300)
        volumes = np.array([[c.at(t) for t in moments] for c in curves])
        left.plot(moments, volumes.mean(axis=0), color=colour, lw=width, label=name)
        left.fill_between(
            moments, volumes.min(axis=0), volumes.max(axis=0), color=colour, alpha=0.12, lw=0
        )
        steps_up = np.array([heights(box, front(box, steps), costs) for steps in runs.values()])
        right.step(costs, 100 * steps_up.mean(axis=0), where="post", color=colour, lw=width)
    left.set(xscale="log", xlabel="device-seconds after the bases", ylabel="hypervolume")
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    right.plot(
        [p.gmacs for p in box.bases],
        [100 * p.top1 for p in box.bases],
        "k^",
        label="dense, each width",
    )
    right.set(xlabel="GMACs, clustering counted", ylabel="top-1 on minival, %")
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(
    directory: Path,
    result: dict[str, Any],
    rows: Sequence[Row],
    savings: Sequence[Saving],
    box: Box,
    traces: Traces,
) -> list[Path]:
    """Writes `search-NAME.json`, `.md` and `.png`; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"search-{result['name']}"
    picture = directory / f"{stem}.png"
    draw(picture, f"Search on {result['name']}: mean and range of the seeds", box, traces)
    result["picture"] = picture.name
    data, text = directory / f"{stem}.json", directory / f"{stem}.md"
    data.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    text.write_text(as_markdown(result, rows, savings), encoding="utf-8")
    return [data, text, picture]


def _by_kind(steps: Sequence[Any]) -> dict[str, float]:
    kinds: dict[str, float] = {}
    for step in steps:
        kinds[step.kind] = kinds.get(step.kind, 0.0) + step.seconds
    return {kind: round(seconds, 3) for kind, seconds in kinds.items()}


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
