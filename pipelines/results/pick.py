"""Choosing one model of a front, and saying why that one."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import UserError
from pipelines.results.front import Front, Point
from pipelines.results.table import compact_schedule, described, with_spread


@dataclass(frozen=True)
class Choice:
    """A point of the front, why it was taken, and its neighbours down and up the front, if any."""

    point: Point
    why: str
    cheaper: Point | None
    better: Point | None


def pick_knee(front: Front) -> Choice:
    """The point past which more cost buys little.

    Raises:
        UserError: Nothing is finished yet.
    """
    points = _finished_front(front)
    knee = next(point for point in points if point.is_knee)
    return _choice(front, knee, "It is the knee: beyond it more cost buys less accuracy.")


def pick_max_gmacs(front: Front, bound: float) -> Choice:
    """The most accurate point that costs at most `bound` GMACs.

    Raises:
        UserError: Nothing is that cheap; the message names the nearest.
    """
    points = _finished_front(front)
    able = [point for point in points if point.gmacs <= bound]
    if not able:
        raise UserError(
            f"no model of {front.name} costs at most {bound:g} GMACs: "
            f"the cheapest is {_describe(points[0])}",
            exit_code=1,
        )
    return _choice(front, able[-1], f"It is the most accurate within {bound:g} GMACs.")


def pick_min_top1(front: Front, bound: float) -> Choice:
    """The cheapest point with at least `bound` top-1 on minival.

    The bound is a fraction, or a percentage above 1.

    Raises:
        UserError: Nothing is that accurate (the message names the nearest), or the bound is no
            accuracy.
    """
    if not 0 <= bound <= 100:
        raise UserError(f"--min-top1 {bound:g} is no accuracy: give 0.97 or 97")
    fraction = bound if bound <= 1 else bound / 100
    points = _finished_front(front)
    able = [point for point in points if _top1(point) >= fraction]
    if not able:
        raise UserError(
            f"no model of {front.name} reaches {100 * fraction:g} % top-1: "
            f"the best is {_describe(points[-1])}",
            exit_code=1,
        )
    return _choice(front, able[0], f"It is the cheapest with at least {100 * fraction:g} % top-1.")


def pick_max_latency(front: Front, bound: float, batch: str | None = None) -> Choice:
    """The most accurate point that takes at most `bound` milliseconds for a batch.

    Of the batch sizes that were measured the smallest counts, unless one is named.

    Raises:
        UserError: Nothing is that fast (the message names the nearest), or nothing was measured.
    """
    finished = [point for point in front.points if point.finished]
    batches = sorted({size for point in finished for size in point.latency_ms}, key=int)
    if not batches:
        raise UserError(
            f"no latency was measured in {front.name}: choose by --max-gmacs instead", exit_code=1
        )
    size = batch or batches[0]
    if size not in batches:
        raise UserError(f"no latency was measured at batch {size}: there is {', '.join(batches)}")
    measured = [point for point in finished if size in point.latency_ms]
    able = [point for point in measured if point.latency_ms[size] <= bound]
    if not able:
        fastest = min(measured, key=lambda point: point.latency_ms[size])
        raise UserError(
            f"no model of {front.name} takes at most {bound:g} ms for a batch of {size}: "
            f"the fastest takes {fastest.latency_ms[size]:.3g} ms, {_describe(fastest)}",
            exit_code=1,
        )
    best = max(able, key=lambda point: (_top1(point), -point.latency_ms[size]))
    why = (
        f"It is the most accurate within {bound:g} ms for a batch of {size} "
        f"({best.latency_ms[size]:.3g} ms)."
    )
    return _choice(front, best, why)


def explain_choice(front: Front, choice: Choice) -> str:
    """The choice in a few lines for a terminal."""
    point = choice.point
    lines = [
        f"{point.point_id}: {_figures(point)}, {100 * point.dense_share:.0f} % of dense",
        f"  width {point.width}, {described(point)}, patch tokens after each block: "
        f"{compact_schedule(point.schedule)}",
    ]
    if point.top1_val is not None:
        lines.append(f"  top-1 on val: {with_spread(point.top1_val, point.val_spread)} %")
    if point.minival_spread is not None:
        lines.append(f"  mean ± standard deviation over {point.num_seeds} seeds")
    lines.append(f"  {choice.why}")
    if choice.cheaper is not None:
        lines.append(f"  One step cheaper: {_step(point, choice.cheaper)}.")
    else:
        lines.append("  Nothing on the front is cheaper.")
    if choice.better is not None:
        lines.append(f"  One step better: {_step(point, choice.better)}.")
    else:
        lines.append("  Nothing on the front is more accurate.")
    if point.checkpoint is not None:
        lines.append(f"  Checkpoint: {point.checkpoint}")
    return "\n".join(lines)


def _step(here: Point, there: Point) -> str:
    cost = 100 * (there.gmacs / here.gmacs - 1)
    gain = 100 * (_top1(there) - _top1(here))
    return f"{there.point_id}, {cost:+.0f} % GMACs for {gain:+.2f} points ({_figures(there)})"


def _figures(point: Point) -> str:
    top1 = with_spread(point.top1_minival, point.minival_spread)
    return f"{point.gmacs:.4g} GMACs, {top1} % top-1 (minival)"


def _describe(point: Point) -> str:
    return f"{point.point_id} with {_figures(point)}"


def _top1(point: Point) -> float:
    return point.top1_minival or 0.0


def _finished_front(front: Front) -> tuple[Point, ...]:
    if not front.on_front:
        raise UserError(
            f"no model of {front.name} is finished yet: see `tokenpool front {front.name} --all`",
            exit_code=1,
        )
    return front.on_front


def _choice(front: Front, point: Point, why: str) -> Choice:
    cheaper = [other for other in front.on_front if other.gmacs < point.gmacs]
    better = [other for other in front.on_front if _top1(other) > _top1(point)]
    return Choice(point, why, cheaper[-1] if cheaper else None, better[0] if better else None)
