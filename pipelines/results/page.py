"""The front as one self-contained interactive HTML page: no network, no second file."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from pipelines.data.manifest import load_manifest
from pipelines.errors import UserError
from pipelines.results.find_data import find_data
from pipelines.results.front import Front, Point, Progress
from pipelines.results.matched import matched
from pipelines.results.points import error
from pipelines.results.table import compact_schedule, percent, slower_text
from pipelines.search.state import SearchState


@dataclass(frozen=True)
class OutsidePoint:
    """A model measured elsewhere; top-1 is a fraction, and its deviation is over seeds."""

    label: str
    gmacs: float
    top1: float
    top1_std: float | None = None
    params: float | None = None


@dataclass(frozen=True)
class OutsideFront:
    """A front measured elsewhere, drawn beside the search's own."""

    name: str
    points: tuple[OutsidePoint, ...]


def render_page(
    front: Front,
    history: Sequence[Progress] = (),
    others: Sequence[OutsideFront] = (),
    samples: Mapping[str, int] | None = None,
    footer: str = "",
) -> str:
    """The page as HTML text.

    Args:
        front: All points of the search.
        history: How the hypervolume grew.
        others: Fronts measured elsewhere.
        samples: Images in `minival` and `val`; where known, the points get error bars.
        footer: A line about where it comes from, e.g. the config's hash.
    """
    data = page_data(front, samples or {}) | {
        "footer": footer,
        "others": [_outside_data(other) for other in others],
        "history": [
            {"device_seconds": step.device_seconds, "hypervolume": step.hypervolume}
            for step in history
        ],
    }
    parts = {
        "@@TITLE@@": html.escape(f"Front of {front.name}"),
        "@@CSS@@": _asset("page.css"),
        # It cannot end the script element it stands in.
        "@@DATA@@": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        "@@PLOTLY@@": _plotly(),
        "@@JS@@": _asset("page.js"),
    }
    text = _asset("page.html")
    # Split first: nothing that is put in is searched for placeholders again.
    for placeholder, content in parts.items():
        before, _, after = text.partition(placeholder)
        parts[placeholder] = before + content
        text = after
    return "".join(parts.values()) + text


def page_data(front: Front, samples: Mapping[str, int]) -> dict[str, Any]:
    """What the page's script reads of the search's own front, as plain JSON types."""
    batches = sorted({batch for point in front.points for batch in point.latency_ms}, key=int)
    costs = {"gmacs": ("GMACs per image", "GMACs", "GMACs")}
    if any(point.params for point in front.points):
        costs["params"] = ("parameters, millions", "M parameters", "M params")
    costs |= {
        f"latency_{batch}": (
            f"ms per batch of {batch}",
            f"ms (batch of {batch})",
            f"ms, batch {batch}",
        )
        for batch in batches
    }
    qualities = {"top1_minival": "top-1 on minival", "top1_val": "top-1 on val"}
    if not any(point.top1_val is not None for point in front.points):
        del qualities["top1_val"]
    return {
        "title": f"Front of {front.name}",
        "summary": summary(front),
        "note": _error_note(front, samples),
        "patches": front.patches,
        "costs": {
            key: dict(zip(("title", "unit", "column"), said, strict=True))
            for key, said in costs.items()
        },
        "qualities": qualities,
        "points": [_point_data(front.name, point, samples) for point in front.points],
    }


def _outside_data(other: OutsideFront) -> dict[str, Any]:
    return {
        "name": other.name,
        "points": [
            {
                "id": point.label,
                "width": "–",
                "compact": other.name,
                "costs": {"gmacs": point.gmacs} | _millions(point.params),
                "top1_minival": point.top1,
                "top1_val": point.top1,
                "minival_error": point.top1_std,
                "val_error": point.top1_std,
            }
            for point in other.points
        ],
    }


def summary(front: Front) -> str:
    """What was found, in a few sentences for people."""
    finished = sum(point.finished for point in front.points)
    if not front.on_front:
        return "No model is finished yet."
    best, knee = front.on_front[-1], front.knee
    text = (
        f"{finished} finished models, {len(front.on_front)} of them on the front; "
        f"hypervolume {front.hypervolume:.4f}. "
        f"Best: {best.point_id} with {percent(best.top1_minival)} % top-1 (minival) "
        f"at {best.gmacs:.4g} GMACs. "
    )
    if knee is not None:
        text += (
            f"Knee: {knee.point_id} with {percent(knee.top1_minival)} % at {knee.gmacs:.4g} GMACs, "
            f"{100 * knee.dense_share:.0f} % of the dense model's. "
        )
    screening = [f"{found[0].upper()}{found[1:]}." for found in front.screening]
    equal = [found.text for found in matched(front)[:1] if found.pooled is not None]
    said = [text.rstrip(), _saving(front), slower_text(front), *equal, _against_constant(front)]
    return " ".join(filter(None, [*said, *screening]))


def _saving(front: Front) -> str:
    """What pooling saves: the cheapest final at least as good as the best dense model."""
    dense = [point for point in front.points if point.kind == "dense" and point.finished]
    if not dense:
        return ""
    best = max(dense, key=lambda point: (point.top1_minival or 0.0, -point.gmacs))
    as_good = [
        point
        for point in front.on_front
        if point.kind == "final" and (point.top1_minival or 0.0) >= (best.top1_minival or 0.0)
    ]
    if not as_good:
        return f"No pooled model reaches the best dense one, {best.point_id}."
    saved = 100 * (1 - as_good[0].gmacs / best.gmacs)
    return (
        f"{as_good[0].point_id} is as accurate as the best dense model, {best.point_id}, "
        f"with {saved:.0f} % fewer GMACs."
    )


def _against_constant(front: Front) -> str:
    """What the search found where the best constant keep-rate costs as much."""
    constant = [
        p
        for p in front.points
        if p.kind == "constant" and p.finished and p.keep_rate != 1  # 1: a plain model
    ]
    if not constant:
        return ""
    best = max(constant, key=lambda point: (point.top1_minival or 0.0, -point.gmacs))
    text = (
        f"The best constant keep-rate, {best.keep_rate:g} at width {best.width}, has "
        f"{percent(best.top1_minival)} % at {best.gmacs:.4g} GMACs"
    )
    affordable = [p for p in front.on_front if p.kind == "final" and p.gmacs <= best.gmacs]
    if not affordable:
        return f"{text}; no searched model costs as little."
    found = affordable[-1]
    return f"{text}; {found.point_id} has {percent(found.top1_minival)} % at {found.gmacs:.4g}."


def export_command(name: str, point: Point) -> str | None:
    """The command that takes a point away, or None where there is no checkpoint."""
    if point.checkpoint is None:
        return None
    return f"tokenpool export {shlex.quote(name)} {shlex.quote(point.point_id)} --format timm"


def split_sizes(state: SearchState) -> dict[str, int]:
    """Images per split of the data a search used; empty where nothing tells any more."""
    if state.images:
        return state.images
    try:  # begun by a program that did not record them
        manifest = load_manifest(find_data(state))
    except (KeyError, UserError):
        return {}
    return {name: split.samples for name, split in manifest.splits.items()}


def _error_note(front: Front, samples: Mapping[str, int]) -> str:
    counts = ", ".join(
        f"{samples[name]} on {name}" for name in ("minival", "val") if name in samples
    )
    over_images = f"± one binomial standard error over the images ({counts})" if counts else ""
    most = max((point.num_seeds for point in front.points), default=0)
    if most < 2:
        return f"Bars: {over_images}." if over_images else ""
    over_seeds = f"± one standard deviation over seeds (up to {most}), around their mean"
    return f"Bars: {over_seeds}" + (f"; with one seed, {over_images}." if over_images else ".")


def _millions(params: float | None) -> dict[str, float]:
    return {} if params is None else {"params": params / 1e6}


def _point_data(name: str, point: Point, samples: Mapping[str, int]) -> dict[str, Any]:
    return {
        "id": point.point_id,
        "kind": point.kind,
        "width": point.width,
        "method": point.method,
        "keep_rate": point.keep_rate,
        "seeds": point.num_seeds,
        "schedule": list(point.schedule),
        "compact": compact_schedule(point.schedule),
        "costs": {"gmacs": point.gmacs}
        | _millions(point.params)
        | {f"latency_{batch}": ms for batch, ms in point.latency_ms.items()},
        "percent_of_dense": 100 * point.dense_share,
        "time_saved": point.time_saved,
        "top1_minival": point.top1_minival,
        "top1_val": point.top1_val,
        "minival_error": error(point.top1_minival, point.minival_spread, samples.get("minival")),
        "val_error": error(point.top1_val, point.val_spread, samples.get("val")),
        "pareto": point.on_front,
        "knee": point.is_knee,
        "finished": point.finished,
        "status": point.status,
        "reason": point.reason,
        "command": export_command(name, point),
    }


def _asset(name: str) -> str:
    return resources.files("pipelines.results").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # here, as the import takes a while

    return str(get_plotlyjs()).replace("</script", "<\\/script")
