"""What contenders do and are charged: models that were measured, and steps on the way to them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """A trained model that was measured.

    Attributes:
        top1: on minival, a fraction.
        epoch: of its fine-tuning; a model that was stopped at a rung counts as well.
    """

    width: int
    schedule: tuple[int, ...]
    gmacs: float
    top1: float
    epoch: int = 0


@dataclass(frozen=True)
class Step:
    """What a contender did: the device seconds it took, and the model that came of it, if any."""

    seconds: float
    kind: str
    point: Point | None = None
