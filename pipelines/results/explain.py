"""Why a model of a search is where it is: kept, stopped, failed, on the front or under it."""

from __future__ import annotations

import difflib

from pipelines.errors import UserError
from pipelines.results.front import Front, Point, build_front
from pipelines.results.table import compact_schedule, described, percent, with_spread
from pipelines.search.state import SearchState
from tune_spaces import pareto


def find_point(front: Front, point_id: str) -> Point:
    """The point of that id.

    Raises:
        UserError: There is none; near matches are offered.
    """
    point = front.point(point_id)
    if point is not None:
        return point
    ids = [training.model_id for point in front.points for training in point.trainings]
    near = difflib.get_close_matches(point_id, ids, n=3, cutoff=0.5) or ids[:5]
    hint = f"there is {', '.join(near)}" if near else "it has none yet"
    raise UserError(f"search {front.name} has no model {point_id}: {hint}")


def explain(state: SearchState, point_id: str) -> str:
    """A few lines on one model: what it is, what became of it, and why.

    Raises:
        UserError: There is no such model.
    """
    front = build_front(state)
    point = find_point(front, point_id)
    kind = "dense base" if point.kind == "dense" else described(point)
    lines = [
        f"{point.point_id}: width {point.width}, {kind}, {point.gmacs:.4g} GMACs "
        f"({100 * point.dense_share:.0f} % of dense)",
        f"  patch tokens after each block: {compact_schedule(point.schedule)}",
        f"  {_fate(point)}",
    ]
    if point.minival_spread is not None:
        lines.append(
            f"  mean of {point.num_seeds} seeds, "
            f"{with_spread(point.top1_minival, point.minival_spread)} % on minival: "
            + ", ".join(f"{t.model_id} {percent(t.top1_minival)}" for t in point.trainings)
        )
    reports = state.models[point_id].reports
    if reports:
        curve = " ".join(f"{100 * report.top1_minival:.1f}" for report in reports)
        lines.append(f"  top-1 on minival, epoch by epoch: {curve}")
    lines.append(f"  {_standing(front, point)}")
    return "\n".join(lines)


def exportable(front: Front, point_id: str) -> Point:
    """The point of that id, which has a checkpoint.

    Raises:
        UserError: There is no such model, or it was not trained to its end.
    """
    point = find_point(front, point_id)
    if point.checkpoint is None:
        raise UserError(
            f"{point.point_id} of {front.name} has no checkpoint ({point.status}): "
            f"`tokenpool front {front.name}` lists the models that have one",
            exit_code=1,
        )
    return point


def _fate(point: Point) -> str:
    epochs = "1 epoch" if point.epochs == 1 else f"{point.epochs} epochs"
    trained = f"after {epochs}, {point.device_seconds:.0f} device-seconds"
    if point.status == "done":
        text = f"Trained to its end, {trained}; top-1 {percent(point.top1_minival)} % on minival"
        return text + (f", {percent(point.top1_val)} % on val." if point.top1_val else ".")
    if point.status in ("stopped", "failed"):
        word = "Stopped early" if point.status == "stopped" else "Failed"
        return f"{word} {trained}: {point.reason or 'no reason was recorded'}."
    if point.status == "paused":
        return f"Waits {trained}: until its end is the most promising step."
    return "Running." if point.status == "running" else "Waits for its turn."


def _standing(front: Front, point: Point) -> str:
    if point.top1_minival is None:
        return "Nothing measured yet."
    if point.on_front:
        return "On the front" + (", its knee." if point.is_knee else ".")
    others = [other for other in front.on_front if other.gmacs <= point.gmacs]
    better = [other for other in others if (other.top1_minival or 0.0) >= point.top1_minival]
    if not better:
        return "Nothing on the front is as cheap and as accurate; its training is not finished."
    values = [(other.gmacs, other.top1_minival or 0.0) for other in front.on_front]
    lack = pareto.distance_to_front((point.gmacs, point.top1_minival), values)
    best = max(better, key=lambda other: other.top1_minival or 0.0)
    if lack <= 0:
        return (
            f"Not on the front: {best.point_id} is as accurate ({percent(best.top1_minival)} %) "
            f"at {best.gmacs:.4g} GMACs."
        )
    return (
        f"{100 * lack:.2f} points of top-1 below the front at its own cost: {best.point_id} has "
        f"{percent(best.top1_minival)} % at {best.gmacs:.4g} GMACs."
    )
