"""The rule of Pareto-aware successive halving: who goes on at a rung. Pure, knows no Ray.

A single-metric scheduler compares everyone with everyone, and so stops every cheap model because
it is less accurate than every dear one. Here a trial is compared at its own cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tune_spaces.pareto import spread


@dataclass(frozen=True)
class Entry:
    """What a trial showed when it reached a rung.

    Attributes:
        cost: the cost, known before training: GMACs.
        quality: the quality measured; more is better.
        kept: whether the trial may go on.
    """

    cost: float
    quality: float
    kept: bool = True


@dataclass(frozen=True)
class Verdict:
    """A decision at a rung and what it rests on.

    Attributes:
        kept: whether the trial goes on.
        lack: how much quality it lacks against the rung's front at its own cost, before the noise
            margin; 0 on the front.
        rank: its place among the trials seen at this rung, 0 for the best.
        quota: how many of them would be kept by rank alone.
        reason: one sentence for people.
    """

    kept: bool
    lack: float
    rank: int
    quota: int
    reason: str


@dataclass(frozen=True)
class HalvingRule:
    """When a trial is kept at a rung.

    1. A trial that has diverged is stopped; one that has no others to be compared with is kept.
    2. A trial is measured by what it lacks against the rung's front *at its own cost* (all who
       reached the rung count, stopped or not). What is below `noise` counts as nothing lacked.
    3. All are ranked by that, ties by how alone they are on axes scaled to 0..1. The first
       `keep` of them go on.
    4. A trial that lacks nothing goes on beyond that quota too, unless a kept one that is at
       least as good stands within `min_spread` of it: then it would teach nothing new.

    Attributes:
        keep: the share that goes on by rank, 1 / reduction factor of successive halving.
        noise: a margin in units of the quality; e.g. two standard errors of minival top-1.
        min_spread: the distance on scaled axes below which two trials say the same.

    Raises:
        ValueError: for a share outside (0, 1], or a negative noise or distance.
    """

    keep: float = 0.5
    noise: float = 0.0
    min_spread: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be in (0, 1], got {self.keep}")
        if self.noise < 0 or self.min_spread < 0:
            raise ValueError("noise and min_spread must not be negative")

    def judge(self, trial_id: str, rung: Mapping[str, Entry]) -> Verdict:
        """Decides on one trial among all that have reached the rung, itself included.

        Args:
            trial_id: the name of the trial.
            rung: the entry of each trial, by its name.
        """
        if not math.isfinite(rung[trial_id].quality):
            return Verdict(False, math.inf, len(rung) - 1, 0, "its metric is not a number")
        sound = {name: other for name, other in rung.items() if math.isfinite(other.quality)}
        if len(sound) == 1:
            return Verdict(True, 0.0, 0, 1, "too few others to compare with")

        names = list(sound)
        me = names.index(trial_id)
        points = np.array([(other.cost, other.quality) for other in sound.values()])
        lacked = lacks(points)
        beyond = np.maximum(lacked - self.noise, 0.0)
        tied = beyond == beyond[me]
        alone = spread(points[tied])
        rank = int((beyond < beyond[me]).sum() + (alone > alone[tied[:me].sum()]).sum())
        quota = max(1, math.ceil(self.keep * len(names)))

        lack = float(lacked[me])
        if beyond[me] > 0:
            place = f"rank {rank + 1} of {len(names)}, {quota} go on"
            reason = f"{lack:.4g} below the front at its cost; {place}"
            return Verdict(rank < quota, lack, rank, quota, reason)
        where = "on the front" if lack <= 0 else f"{lack:.4g} below the front, within the noise"
        if rank >= quota:
            rivals = np.array([other.kept for other in sound.values()]) & (beyond <= 0)
            twin = self._twin(me, rivals, points)
            if twin is not None:
                reason = f"{where}, but {names[twin]} stands beside it and is at least as good"
                return Verdict(False, lack, rank, quota, reason)
        return Verdict(True, lack, rank, quota, where)

    def _twin(self, me: int, rivals: NDArray[np.bool_], points: NDArray[np.float64]) -> int | None:
        """The nearest of `rivals` that makes the trial `me` superfluous."""
        extent = np.ptp(points, axis=0)
        scaled = (points - points[me]) / np.where(extent > 0, extent, 1.0)
        distances = np.linalg.norm(scaled, axis=1)
        distances[~rivals | (points[:, 1] < points[me, 1])] = np.inf
        distances[me] = np.inf
        nearest = int(np.argmin(distances))
        return nearest if distances[nearest] < self.min_spread else None


def lacks(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each trial lacks against the common front at its own cost.

    Args:
        points: the cost and quality of each trial `[n, 2]`.

    Returns:
        The height of the front's staircase above each `[n]`.
    """
    cost, quality = points.T
    order = np.argsort(cost, kind="stable")
    stairs = np.maximum.accumulate(quality[order])
    step = np.searchsorted(cost[order], cost, side="right") - 1
    height: NDArray[np.float64] = stairs[step] - quality
    return height


def rung_of(grace_epochs: int, epochs: int) -> int:
    """The epoch after which a training of so many may pause; its last where there is no other."""
    return min(grace_epochs, epochs - 1) or epochs
