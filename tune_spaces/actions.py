"""What a policy is set to, and what it can ask for."""

from __future__ import annotations

from dataclasses import dataclass

from tune_spaces.outlook import Prices
from tune_spaces.space import Candidate

__all__ = ["Action", "PolicySettings", "Score", "Train", "Wait"]


@dataclass(frozen=True)
class PolicySettings:
    """How many schedules are scored, how many are trained, and what decides between them.

    Attributes:
        schedules: how many schedules are scored without training, in all.
        generations: in how many parts they are scored; each is bred from what is known by then.
        trials: how many trainings are begun, in all; 0 searches by scores alone.
        rounds: how many rounds of scoring and training there are; each has an equal share of both.
        prices: what a step of training costs.
        keep: the share of the trainings that may go on beyond the rung by rank alone; see
            `HalvingRule`.
        noise: the difference in top-1 that means nothing.
        targets: the GMACs at which schedules are wanted; empty: a front over all costs is.
        seed: the seed of what is drawn.
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
    """Score these without training.

    Attributes:
        candidates: what to score.
        is_new: whether this is a new generation, which `FrontPolicy.asked` is told of first.
    """

    candidates: tuple[Candidate, ...]
    is_new: bool


@dataclass(frozen=True)
class Train:
    """Train a trial on, from its start or its last checkpoint.

    Attributes:
        trial_id: the name of the trial.
        candidate: what it trains.
        until: the epoch at whose end it stops or pauses.
        is_new: whether the trial has not begun yet.
    """

    trial_id: str
    candidate: Candidate
    until: int
    is_new: bool


@dataclass(frozen=True)
class Wait:
    """Nothing before something that runs has come to its rung or its end."""


Action = Score | Train | Wait
