"""The front of a search as rows: the one source of the table, the CSV, the plot and the page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pipelines.results.points import Point, all_points, num_patches
from pipelines.search.agreement import agreement_text
from pipelines.search.ledger import Event
from pipelines.search.standing import chance, finished_points, front_ids, search_hypervolume
from pipelines.search.state import SearchState
from tune_spaces import pareto


@dataclass(frozen=True)
class Front:
    """All points of a search, cheapest first, and what the front amounts to.

    Attributes:
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
                if training.model_id == point_id:
                    return point.only(training)
        return None


def build_front(state: SearchState) -> Front:
    """The front of a search as it stands.

    Only finished points can be on it: a stopped trial's top-1 is that of half a training.
    """
    finished = [(gmacs, top1) for _, gmacs, top1 in finished_points(state)]
    best = front_ids(state)
    knee_value = finished[pareto.knee(finished)] if finished else None
    points = []
    knee_given = False
    for point in all_points(state):
        value = (point.gmacs, point.top1_minival)
        on_front = point.point_id in best
        is_knee = on_front and value == knee_value and not knee_given
        knee_given = knee_given or is_knee
        points.append(replace(point, on_front=on_front, is_knee=is_knee))
    return Front(
        name=state.name,
        points=tuple(points),
        hypervolume=search_hypervolume(state),
        reference_gmacs=max((base.gmacs for base in state.bases), default=0.0),
        reference_top1=chance(state),
        patches=num_patches(state) if state.exists else 0,
        screening=tuple(agreement_text(found, by) for by, found in state.agreement.items()),
    )


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
