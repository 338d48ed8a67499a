"""The front of a search as rows: the one source of the table, the CSV, the plot and the page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pipelines.search.agreement import agreement_text
from pipelines.search.ledger import Event
from pipelines.search.state import BaseState, SearchState, TrialState
from pipelines.track.points import (
    FINISHED,
    Point,
    all_points,
    dense_id,
    mean,
    num_patches,
    seed_groups,
)
from tune_spaces import pareto

__all__ = ["Front", "Point", "Progress", "build_front", "finished_points", "history"]


@dataclass(frozen=True)
class Front:
    """All points of a search, cheapest first, and what the front amounts to.

    Attributes:
        name: The search.
        points: Finals and bases, sorted by GMACs; see `on_front` for the front alone.
        hypervolume: Share in 0..1 of the box from chance to 100 % top-1 (minival) and from zero
            to the widest dense base's GMACs that the models cover by their first trainings.
        reference_gmacs: The cost of that base.
        reference_top1: Chance.
        patches: Patch tokens of a dense model.
        screening: How well scores without training foretold the finals, in words.
    """

    name: str
    points: tuple[Point, ...]
    hypervolume: float
    reference_gmacs: float
    reference_top1: float
    patches: int
    screening: tuple[str, ...] = ()

    @property
    def on_front(self) -> tuple[Point, ...]:
        """The non-dominated points, cheapest first."""
        return tuple(point for point in self.points if point.on_front)

    @property
    def knee(self) -> Point | None:
        """The knee of the front, or None while nothing is finished."""
        return next((point for point in self.points if point.is_knee), None)

    def point(self, point_id: str) -> Point | None:
        """The point of that id, or what one of its seeds left; None if there is neither."""
        for point in self.points:
            if point.point_id == point_id:
                return point
            for training in point.trainings:
                if training.run_id == point_id:
                    return point.only(training)
        return None


def build_front(state: SearchState) -> Front:
    """The front of a search as it stands.

    Only finished points can be on it: a stopped trial's top-1 is that of half a training.
    """
    finished = _finished(state)
    front_values = _front_values(finished)
    knee_value = finished[pareto.knee(finished)] if finished else None
    points = []
    knee_given = False
    for point in all_points(state):
        value = (point.gmacs, point.top1_minival)
        on_front = point.finished and value in front_values
        is_knee = on_front and value == knee_value and not knee_given
        knee_given = knee_given or is_knee
        points.append(replace(point, on_front=on_front, is_knee=is_knee))
    return Front(
        name=state.name,
        points=tuple(points),
        hypervolume=search_hypervolume(state),
        reference_gmacs=max((base.gmacs for base in state.bases), default=0.0),
        reference_top1=_chance(state),
        patches=num_patches(state),
        screening=tuple(agreement_text(found, by) for by, found in state.agreement.items()),
    )


def search_hypervolume(state: SearchState) -> float:
    """Normalised hypervolume of what the search found; 0 while that is nothing.

    Each model counts by its first training alone: a further seed says how sure a figure is, and
    must not make the search look worse. So the hypervolume of a search never falls.
    """
    finished = _first_finished(state)
    reference = max((base.gmacs for base in state.bases), default=0.0)
    if not finished or reference <= 0:
        return 0.0
    return pareto.normalised_hypervolume(finished, reference, _chance(state))


@dataclass(frozen=True)
class Progress:
    """Where a search stood when one of its models was finished."""

    seconds: float
    device_seconds: float
    finished: int
    hypervolume: float


def history(name: str, events: Iterable[Event]) -> list[Progress]:
    """How the hypervolume grew, one entry for each finished model, from a ledger's events."""
    state = SearchState(name)
    steps: list[Progress] = []
    for event in events:
        state.apply(event)
        if event["event"] in ("base_done", "trial_done"):
            steps.append(
                Progress(
                    seconds=max(0.0, event["time"] - state.created),
                    device_seconds=state.device_seconds,
                    finished=len(steps) + 1,
                    hypervolume=search_hypervolume(state),
                )
            )
    return steps


def finished_points(state: SearchState) -> list[tuple[str, float, float]]:
    """(id, GMACs, top-1 on minival) of all points whose top-1 is final, the mean over seeds."""
    found = [
        (dense_id(base), base.gmacs, base.top1_minival)
        for base in state.bases
        if base.status in FINISHED and base.top1_minival is not None
    ]
    for trials in seed_groups(state):
        top1 = mean([t.top1_minival for t in trials if t.status in FINISHED])
        if top1 is not None:
            found.append((trials[0].trial_id, trials[0].gmacs, top1))
    return found


def _first_finished(state: SearchState) -> list[tuple[float, float]]:
    """(GMACs, top-1 on minival) of each finished point's first finished training."""
    groups: list[list[BaseState] | list[TrialState]] = [[base] for base in state.bases]
    groups += seed_groups(state)
    found: list[tuple[float, float]] = []
    for group in groups:
        tops = [m.top1_minival for m in group if m.status in FINISHED]
        known = [top1 for top1 in tops if top1 is not None]
        found += [(group[0].gmacs, top1) for top1 in known[:1]]
    return found


def _finished(state: SearchState) -> list[tuple[float, float]]:
    return [(gmacs, top1) for _, gmacs, top1 in finished_points(state)]


def _chance(state: SearchState) -> float:
    return 1.0 / state.num_classes if state.num_classes else 0.0


def _front_values(finished: list[tuple[float, float]]) -> set[tuple[float, float]]:
    if not finished:
        return set()
    mask = pareto.non_dominated(finished)
    return {value for value, good in zip(finished, mask, strict=True) if good}
