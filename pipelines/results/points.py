"""The models of a search as points: repetitions under several seeds are one point."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.search.model_record import Kind, Status
from pipelines.search.standing import cheapest_first, mean, model_groups
from pipelines.search.state import Model, SearchState


@dataclass(frozen=True)
class Point:
    """One model of a search: a final, a baseline of constant keep-rate, or a width's dense base.

    Attributes:
        point_id: What `pick` and `export` call it: its first trial's id, or `dense-WIDTH`.
        kind: A searched schedule, a constant keep-rate to compare with, or no pooling.
        keep_rate: Of a constant one.
        schedule: Patch tokens kept after each block.
        gmacs: 10⁹ multiply-accumulates for one image, clustering included.
        dense_share: `gmacs` as a fraction of the widest dense base's.
        params: Weights of the model.
        top1_minival: Fraction in [0, 1] on images held out from training, the mean over finished
            seeds; decides the front.
        top1_val: Fraction in [0, 1] on the validation images, the mean over seeds; None until
            published.
        on_front: No finished point is cheaper or as cheap and better.
        is_knee: Where paying more stops being worth it.
        latency_ms: Batch size → milliseconds per batch, where measured.
        times_dense: Batch size → how many times as fast as the dense model of its width, where
            both were measured; empty for a dense one.
        trainings: One for each seed, in the order they were recorded.
    """

    point_id: str
    kind: Kind
    keep_rate: float | None
    width: int
    num_heads: int
    schedule: tuple[int, ...]
    method: str
    gmacs: float
    dense_share: float
    params: int
    top1_minival: float | None
    top1_val: float | None
    status: str
    latency_ms: dict[str, float]
    epochs: int
    device_seconds: float
    checkpoint: str | None
    reason: str
    trainings: tuple[Model, ...]
    on_front: bool = False
    is_knee: bool = False
    times_dense: dict[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether its top-1 is final."""
        return self.status == "done" and self.top1_minival is not None

    @property
    def num_seeds(self) -> int:
        """Seeds that its top-1 is the mean of."""
        return sum(training.is_finished for training in self.trainings)

    @property
    def minival_spread(self) -> float | None:
        """Sample standard deviation of top-1 on minival over seeds; None with fewer than two."""
        return spread([t.top1_minival for t in self.trainings if t.is_finished])

    @property
    def val_spread(self) -> float | None:
        """As `minival_spread`, on the validation images."""
        return spread([t.top1_val for t in self.trainings if t.is_finished])

    @property
    def schedule_text(self) -> str:
        """The schedule as `tokenpool.Schedule.parse` reads it."""
        return ",".join(map(str, self.schedule))

    @property
    def time_saved(self) -> str:
        """Whether it is faster than the dense model of its width, in words; empty if not known."""
        said = []
        for batch, times in sorted(self.times_dense.items(), key=lambda item: int(item[0])):
            word = "slower than" if times < 1 else "as fast as" if times == 1 else "faster than"
            said.append(f"{word} dense at batch {batch} (×{times:.2f})")
        return ", ".join(said)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, one flat row."""
        return {
            "id": self.point_id,
            "kind": self.kind,
            "keep_rate": self.keep_rate,
            "width": self.width,
            "heads": self.num_heads,
            "method": self.method,
            "schedule": self.schedule_text,
            "gmacs": round(self.gmacs, 6),
            "percent_of_dense": round(100 * self.dense_share, 2),
            "params": self.params,
            "top1_minival": self.top1_minival,
            "top1_minival_std": self.minival_spread,
            "top1_val": self.top1_val,
            "top1_val_std": self.val_spread,
            "seeds": self.num_seeds,
            **{f"latency_ms_b{batch}": ms for batch, ms in sorted(self.latency_ms.items())},
            **{
                f"times_dense_b{batch}": round(times, 3)
                for batch, times in sorted(self.times_dense.items())
            },
            "pareto": self.on_front,
            "knee": self.is_knee,
            "status": self.status,
            "epochs": self.epochs,
            "device_seconds": round(self.device_seconds, 1),
            "reason": self.reason,
            "checkpoint": self.checkpoint,
        }

    def only(self, training: Model) -> Point:
        """The point as one of its trainings left it."""
        return replace(
            self,
            point_id=training.model_id,
            top1_minival=training.top1_minival,
            top1_val=training.top1_val,
            status=training.status,
            epochs=training.epochs,
            device_seconds=training.device_seconds,
            checkpoint=training.checkpoint,
            reason=training.reason,
            trainings=(training,),
        )


def against_dense(points: Sequence[Point]) -> list[Point]:
    """The points, told how fast they are beside the dense model of their width."""
    dense = {point.width: point.latency_ms for point in points if point.kind == "dense"}
    return [
        replace(
            point,
            times_dense={
                batch: dense[point.width][batch] / milliseconds
                for batch, milliseconds in point.latency_ms.items()
                if point.kind != "dense" and batch in dense.get(point.width, {})
            },
        )
        for point in points
    ]


def spread(values: Sequence[float | None]) -> float | None:
    """Sample standard deviation of what is known; None if that is fewer than two."""
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) > 1 else None


def all_points(state: SearchState) -> list[Point]:
    """Every model of a search, cheapest first; nothing yet said about the front."""
    dense = max((base.gmacs for base in state.bases), default=0.0)
    groups = cheapest_first(model_groups(state))
    return against_dense([_point(state, group, dense) for group in groups])


def num_patches(state: SearchState) -> int:
    """Patch tokens of a dense model of the search."""
    return state.config.model.num_patches(state.config.data.image_size)


def vit_params(width: int, depth: int, patch_size: int, num_patches: int, num_classes: int) -> int:
    """Weights of a DeiT of that shape; pooling adds none.

    Patch embedding, class token and positions, per block two norms, qkv, projection and an MLP of
    four times the width, the last norm and the head, biases included.
    """
    embedding = 3 * patch_size**2 * width + width + width + (num_patches + 1) * width
    block = 4 * width + 4 * (width**2 + width) + 8 * width**2 + 5 * width
    return embedding + depth * block + 2 * width + (width + 1) * num_classes


def _point(state: SearchState, group: list[Model], dense: float) -> Point:
    finished = [training for training in group if training.is_finished]
    # What stands for all: the first that is finished, else whatever is furthest.
    chosen = finished[0] if finished else min(group, key=lambda model: _ORDER.index(model.status))
    counted = finished or [chosen]
    first = group[0]
    return Point(
        point_id=first.model_id,
        kind=first.kind,
        keep_rate=first.keep_rate,
        width=first.width,
        num_heads=first.num_heads,
        schedule=first.schedule,
        method=first.method,
        gmacs=first.gmacs,
        dense_share=first.gmacs / dense if dense else 0.0,
        params=vit_params(
            first.width,
            state.config.model.depth,
            state.config.model.patch_size,
            num_patches(state),
            state.num_classes,
        ),
        top1_minival=mean([training.top1_minival for training in counted]),
        top1_val=mean([training.top1_val for training in counted]),
        status=chosen.status,
        latency_ms=next((dict(model.latency_ms) for model in group if model.latency_ms), {}),
        epochs=chosen.epochs,
        device_seconds=sum(training.device_seconds for training in group),
        checkpoint=chosen.checkpoint,
        reason=chosen.reason,
        trainings=tuple(group),
    )


# Trainings by how far they are.
_ORDER: tuple[Status, ...] = ("running", "paused", "stopped", "failed", "pending", "done")


def standard_error(top1: float, images: int) -> float:
    """Binomial standard error of an accuracy measured on so many images, as a fraction."""
    return math.sqrt(max(top1 * (1 - top1), 0.0) / images)


def error(top1: float | None, deviation: float | None, images: int | None) -> float | None:
    """Half the length of an error bar: the spread over seeds, else the error over images."""
    if top1 is None or deviation is not None:
        return deviation
    return standard_error(top1, images) if images else None
