"""The front as a table on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from pipelines.results.front import Front, Point

# What the table takes without latencies, and each of them more.
_WIDTH, _LATENCY_WIDTH = 80, 8


def front_table(front: Front, points: Sequence[Point] | None = None, *, width: int = 160) -> Table:
    """A table of `points` (default: the front alone), cheapest first.

    A star marks a point on the front and `knee` the knee, so that nothing is said by colour alone.
    Latencies that do not fit a terminal of so many characters are left out.
    """
    shown = front.on_front if points is None else points
    latencies = sorted({batch for point in shown for batch in point.latency_ms}, key=int)
    latencies = latencies[: max(0, (width - _WIDTH) // _LATENCY_WIDTH)]
    table = Table(
        title=f"Front of {front.name}",
        caption=caption(front),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
    )
    for name in ("model", "width"):
        table.add_column(name, no_wrap=True)
    table.add_column("patch tokens per block", overflow="fold", min_width=14, ratio=1)
    for name in ("GMACs", "% dense", "minival", "val"):
        table.add_column(name, justify="right", no_wrap=True)
    for batch in latencies:
        table.add_column(f"ms b{batch}", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for point in shown:
        table.add_row(
            point.point_id,
            str(point.width),
            compact_schedule(point.schedule)
            + (f" (keep rate {point.keep_rate:g})" if point.keep_rate is not None else ""),
            f"{point.gmacs:.4g}",
            f"{100 * point.dense_share:.0f}",
            with_spread(point.top1_minival, point.minival_spread),
            with_spread(point.top1_val, point.val_spread),
            *[
                f"{point.latency_ms[batch]:.2f}" if batch in point.latency_ms else "–"
                for batch in latencies
            ],
            mark(point),
            style="bold" if point.is_knee else None,
        )
    return table


def caption(front: Front) -> str:
    """What the table rests on: counts and the hypervolume."""
    finished = sum(point.finished for point in front.points)
    text = (
        f"{len(front.on_front)} of {finished} finished models are on the front; "
        f"hypervolume {front.hypervolume:.4f} (top-1 on minival, "
        f"dense reference {front.reference_gmacs:.4g} GMACs)"
    )
    several = any(point.num_seeds > 1 for point in front.points)
    text += "; ± one standard deviation over seeds" if several else ""
    slower = slower_text(front)
    return f"{text}. {slower}" if slower else text


def slower_text(front: Front) -> str:
    """Which models of the front save GMACs but no time at the smallest batch; empty if none."""
    batches = {batch for point in front.on_front for batch in point.times_dense}
    if not batches:
        return ""
    batch = min(batches, key=int)
    slower = [p.point_id for p in front.on_front if p.times_dense.get(batch, 1) < 1]
    if not slower:
        return ""
    return f"Slower than the dense model of their width at batch {batch}: {', '.join(slower)}."


def percent(fraction: float | None) -> str:
    """A fraction as a percentage with two decimals; a dash for nothing."""
    return "–" if fraction is None else f"{100 * fraction:.2f}"


def with_spread(fraction: float | None, spread: float | None) -> str:
    """A percentage, with its standard deviation over seeds where there are several."""
    return percent(fraction) + ("" if spread is None else f"±{percent(spread)}")


def described(point: Point) -> str:
    """How a point keeps tokens: `dense`, its method, or its method with a constant keep-rate."""
    if point.kind == "dense":
        return "dense"
    rate = "" if point.keep_rate is None else f" at a constant keep-rate of {point.keep_rate:g}"
    return point.method + rate


def mark(point: Point) -> str:
    """`★ knee`, `★` on the front, or the status of anything else that is not finished."""
    if point.on_front:
        return "★ knee" if point.is_knee else "★"
    return "" if point.status == "done" else point.status


def compact_schedule(schedule: Sequence[int]) -> str:
    """A schedule with runs folded: `64×2 48 32×3`."""
    runs: list[list[int]] = []
    for count in schedule:
        if runs and runs[-1][0] == count:
            runs[-1][1] += 1
        else:
            runs.append([count, 1])
    return " ".join(f"{count}×{times}" if times > 1 else str(count) for count, times in runs)
