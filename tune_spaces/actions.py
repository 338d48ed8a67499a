"""What a policy is set to, and what it can ask for."""

from __future__ import annotations

from dataclasses import dataclass

from tune_spaces.outlook import Prices
from tune_spaces.space import Candidate

__all__ = ["Action", "PolicySettings", "Score", "Train", "Wait"]


@dataclass(frozen=True)
class PolicySettings:
    """How much is looked at and how much is trained.

    Attributes:
        schedules: scored without training, in all.
        generations: in so many parts; each is bred from what is known by then.
        trials: trainings begun, in all; 0 searches by scores alone.
        rounds: of scoring and training; each has an equal share of both.
        prices: of a step of training.
        keep: share of the trainings that may go on beyond the rung by rank alone; see
            `HalvingRule`.
        noise: differences in top-1 that mean nothing.
        targets: GMACs at which schedules are wanted, where not a front over all costs is.
        seed: of what is drawn.
    """

    schedules: int
    generations: int
    trials: int
    rounds: int
    prices: Prices
    keep: float = 0.5
    noise: float = 0.0
    targets: tuple[float, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Score:
    """Score these without training. A new generation is told of by `asked` before it is scored."""

    candidates: tuple[Candidate, ...]
    is_new: bool


@dataclass(frozen=True)
class Train:
    """Train this trial on, from its start or its last checkpoint, to the end of an epoch."""

    trial_id: str
    candidate: Candidate
    until: int
    is_new: bool


@dataclass(frozen=True)
class Wait:
    """Nothing before something that runs has come to its rung or its end."""


Action = Score | Train | Wait
