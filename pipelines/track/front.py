"""The front of a search as rows: the one source of the table, the CSV, the plot and the page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.search.ledger import Event
from pipelines.search.state import BaseState, SearchState, TrialState
from tune_spaces import pareto

# Statuses whose top-1 is final. A stopped trial's is not: it had fewer epochs than the others.
FINISHED = ("done",)


@dataclass(frozen=True)
class Point:
    """One model of a search: a final trial, or the dense base of a width.

    Attributes:
        point_id: What `pick` and `export` call it: the trial's id, or `dense-WIDTH`.
        kind: Whether it is a pooled final or a dense base.
        schedule: Patch tokens kept after each block.
        gmacs: 10⁹ multiply-accumulates for one image, clustering included.
        dense_share: `gmacs` as a fraction of the widest dense base's.
        top1_minival: Fraction in [0, 1] on images held out from training; decides the front.
        top1_val: Fraction in [0, 1] on the validation images; None until published.
        on_front: No finished point is cheaper or as cheap and better.
        is_knee: Where paying more stops being worth it.
        latency_ms: Batch size → milliseconds per batch, where measured.
    """

    point_id: str
    kind: Literal["final", "dense"]
    width: int
    num_heads: int
    schedule: tuple[int, ...]
    method: str
    gmacs: float
    dense_share: float
    top1_minival: float | None
    top1_val: float | None
    status: str
    on_front: bool
    is_knee: bool
    epochs: int
    device_seconds: float
    latency_ms: dict[str, float]
    checkpoint: str | None
    reason: str

    @property
    def finished(self) -> bool:
        """Whether its top-1 is final."""
        return self.status in FINISHED and self.top1_minival is not None

    @property
    def schedule_text(self) -> str:
        """The schedule as `tokenpool.Schedule.parse` reads it."""
        return ",".join(map(str, self.schedule))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, one flat row."""
        return {
            "id": self.point_id,
            "kind": self.kind,
            "width": self.width,
            "heads": self.num_heads,
            "method": self.method,
            "schedule": self.schedule_text,
            "gmacs": round(self.gmacs, 6),
            "percent_of_dense": round(100 * self.dense_share, 2),
            "top1_minival": self.top1_minival,
            "top1_val": self.top1_val,
            **{f"latency_ms_b{batch}": ms for batch, ms in sorted(self.latency_ms.items())},
            "pareto": self.on_front,
            "knee": self.is_knee,
            "status": self.status,
            "epochs": self.epochs,
            "device_seconds": round(self.device_seconds, 1),
            "reason": self.reason,
            "checkpoint": self.checkpoint,
        }


@dataclass(frozen=True)
class Front:
    """All points of a search, cheapest first, and what the front amounts to.

    Attributes:
        name: The search.
        points: Finals and bases, sorted by GMACs; see `on_front` for the front alone.
        hypervolume: Share in 0..1 of the box from chance to 100 % top-1 (minival) and from zero
            to the widest dense base's GMACs that the front covers.
        reference_gmacs: The cost of that base.
        reference_top1: Chance.
        patches: Patch tokens of a dense model.
    """

    name: str
    points: tuple[Point, ...]
    hypervolume: float
    reference_gmacs: float
    reference_top1: float
    patches: int

    @property
    def on_front(self) -> tuple[Point, ...]:
        """The non-dominated points, cheapest first."""
        return tuple(point for point in self.points if point.on_front)

    @property
    def knee(self) -> Point | None:
        """The knee of the front, or None while nothing is finished."""
        return next((point for point in self.points if point.is_knee), None)

    def point(self, point_id: str) -> Point | None:
        """The point of that id, or None."""
        return next((point for point in self.points if point.point_id == point_id), None)


def build_front(state: SearchState) -> Front:
    """The front of a search as it stands.

    Only finished points can be on it: a stopped trial's top-1 is that of half a training.
    """
    model, data = state.config.get("model", {}), state.config.get("data", {})
    patches = (data.get("image_size", 0) // model.get("patch_size", 1)) ** 2
    depth = model.get("depth", 0)
    reference_gmacs = max((base.gmacs for base in state.bases), default=0.0)
    candidates: list[dict[str, Any]] = [
        {
            "point_id": dense_id(base),
            "kind": "dense",
            "width": base.width,
            "num_heads": base.num_heads,
            "schedule": (patches,) * depth,
            "method": "none",
            "source": base,
            "latency_ms": {},
        }
        for base in state.bases
    ] + [
        {
            "point_id": trial.trial_id,
            "kind": "final",
            "width": trial.width,
            "num_heads": trial.num_heads,
            "schedule": tuple(trial.schedule),
            "method": trial.method,
            "source": trial,
            "latency_ms": dict(trial.latency_ms or {}),
        }
        for trial in state.trials.values()
    ]
    finished = _finished(state)
    front_values = _front_values(finished)
    knee_value = finished[pareto.knee(finished)] if finished else None
    points = []
    knee_given = False
    for row in sorted(candidates, key=lambda row: (row["source"].gmacs, row["point_id"])):
        source = row.pop("source")
        value = (source.gmacs, source.top1_minival)
        on_front = source.status in FINISHED and value in front_values
        is_knee = on_front and value == knee_value and not knee_given
        knee_given = knee_given or is_knee
        points.append(
            Point(
                **row,
                gmacs=source.gmacs,
                dense_share=source.gmacs / reference_gmacs if reference_gmacs else 0.0,
                top1_minival=source.top1_minival,
                top1_val=source.top1_val,
                status=source.status,
                on_front=on_front,
                is_knee=is_knee,
                epochs=int(source.reports[-1]["epoch"]) if source.reports else 0,
                device_seconds=source.device_seconds,
                checkpoint=source.checkpoint,
                reason=source.reason,
            )
        )
    return Front(
        name=state.name,
        points=tuple(points),
        hypervolume=search_hypervolume(state),
        reference_gmacs=reference_gmacs,
        reference_top1=_chance(state),
        patches=patches,
    )


def search_hypervolume(state: SearchState) -> float:
    """Normalised hypervolume of the finished points of a search; 0 while there are none."""
    finished = _finished(state)
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
    """(id, GMACs, top-1 on minival) of all points whose top-1 is final."""
    everything: list[tuple[str, BaseState | TrialState]] = [
        *((dense_id(base), base) for base in state.bases),
        *state.trials.items(),
    ]
    return [
        (point_id, point.gmacs, point.top1_minival)
        for point_id, point in everything
        if point.status in FINISHED and point.top1_minival is not None
    ]


def dense_id(base: BaseState) -> str:
    """What a dense base is called among the points."""
    return f"dense-{base.width}"


def _finished(state: SearchState) -> list[tuple[float, float]]:
    return [(gmacs, top1) for _, gmacs, top1 in finished_points(state)]


def _chance(state: SearchState) -> float:
    return 1.0 / state.num_classes if state.num_classes else 0.0


def _front_values(finished: list[tuple[float, float]]) -> set[tuple[float, float]]:
    if not finished:
        return set()
    mask = pareto.non_dominated(finished)
    return {value for value, good in zip(finished, mask, strict=True) if good}
