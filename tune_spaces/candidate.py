"""A candidate, and what it scored without training: the records that a search passes around."""

from __future__ import annotations

from dataclasses import dataclass

from tokenpool.schedule import Schedule

Key = tuple[int, tuple[int, ...], str]
"""What makes two candidates the same one: width, schedule, method."""


@dataclass(frozen=True)
class Candidate:
    """One point of the space: a model width, the patch tokens kept per block, and their cost.

    Attributes:
        width: the embedding dimension of the model.
        schedule: the patch tokens kept after each block.
        gmacs: what an image costs, clustering included.
        method: how tokens are pooled, by the name the space has for it; empty where it has one
            method without a name.
    """

    width: int
    schedule: Schedule
    gmacs: float
    method: str = ""

    @property
    def key(self) -> Key:
        """What makes two candidates the same one."""
        return self.width, tuple(self.schedule), self.method

    @property
    def arm(self) -> tuple[int, str]:
        """The model and method whose schedules it competes with on equal terms."""
        return self.width, self.method


@dataclass(frozen=True)
class Untrained:
    """A candidate's score without training.

    Attributes:
        candidate: what was scored.
        top1: the top-1 on minival, a fraction.
        loss: a loss in nats; which one it is, whoever scores says.
        images: how many images it was scored on before it was dropped, as another was surely better
            at no more cost; the score is estimated from these. None: it was scored on all.
    """

    candidate: Candidate
    top1: float
    loss: float
    images: int | None = None

    @property
    def whole(self) -> bool:
        """Whether it was scored on all images."""
        return self.images is None
