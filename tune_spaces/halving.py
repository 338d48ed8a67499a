"""The rule of Pareto-aware successive halving: who goes on at a rung. Pure, knows no Ray.

A single-metric scheduler compares everyone with everyone, and so stops every cheap model because
it is less accurate than every dear one. Here a trial is compared at its own cost.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tune_spaces.pareto import non_dominated, spread


@dataclass(frozen=True)
class Entry:
    """What a trial showed when it reached a rung.

    Attributes:
        costs: Known before training, to minimise: GMACs, latency, parameters.
        qualities: Measured, each turned so that more is better.
        kept: What was decided.
    """

    costs: tuple[float, ...]
    qualities: tuple[float, ...]
    kept: bool = True

    @property
    def diverged(self) -> bool:
        """Whether a quality is NaN or infinite."""
        return not all(math.isfinite(value) for value in self.qualities)


@dataclass(frozen=True)
class Verdict:
    """A decision at a rung and what it rests on.

    Attributes:
        kept: Whether the trial goes on.
        lack: How much quality it lacks against the rung's front at its own cost, before the noise
            margin; ≤ 0 on or above the front. With several qualities, the least lack among them,
            each in units of its range at the rung.
        rank: Place among the trials seen at this rung, 0 for the best.
        quota: How many of them would be kept by rank alone.
        reason: One sentence for people.
    """

    kept: bool
    lack: float
    rank: int
    quota: int
    reason: str


@dataclass(frozen=True)
class Comparison:
    """How a trial compares with all sound trials of its rung, itself among them.

    Attributes:
        num_trials: so many they are.
        lack: see `Verdict`.
        below: whether it lacks more than the noise.
        rank: see `Verdict`.
        twin: finds the kept trial beside it that makes it superfluous, if there is one.
    """

    num_trials: int
    lack: float
    below: bool
    rank: int
    twin: Callable[[], str | None]


@dataclass(frozen=True)
class HalvingRule:
    """When a trial is kept at a rung.

    1. A trial that has diverged is stopped; one that has fewer than `min_peers` others to be
       compared with is kept.
    2. A trial is measured by what it lacks against the rung's front *at its own cost* (all who
       reached the rung count, stopped or not). What is below `noise` counts as nothing lacked.
    3. All are ranked by that, ties by how alone they are on axes scaled to 0..1. The first
       `keep` of them go on.
    4. A trial that lacks nothing goes on beyond that quota too, unless a kept one that is at
       least as good stands within `min_spread` of it: then it would teach nothing new.

    Attributes:
        keep: Share that goes on by rank, 1 / reduction factor of successive halving.
        noise: Margin per quality, in its own units; e.g. two standard errors of minival top-1.
        min_spread: Distance on scaled axes below which two trials say the same.
        min_peers: Others needed at a rung before anyone is stopped there.
    """

    keep: float = 0.5
    noise: tuple[float, ...] = (0.0,)
    min_spread: float = 0.02
    min_peers: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be in (0, 1], got {self.keep}")
        if not self.noise or min(self.noise) < 0 or self.min_spread < 0:
            raise ValueError("noise and min_spread must not be negative")
        if self.min_peers < 1:
            raise ValueError(f"min_peers must be at least 1, got {self.min_peers}")

    def judge(self, trial_id: str, rung: Mapping[str, Entry]) -> Verdict:
        """Decides on one trial among all that have reached the rung, itself included.

        Args:
            trial_id: A key of `rung`.
            rung: Everyone's entry.
        """
        entry = rung[trial_id]
        if entry.diverged:
            return Verdict(False, math.inf, len(rung) - 1, 0, "its metric is not a number")
        sound = {name: other for name, other in rung.items() if not other.diverged}
        if len(sound) <= self.min_peers:
            return self.too_few(len(sound))

        names = list(sound)
        me = names.index(trial_id)
        costs = np.array([sound[name].costs for name in names], dtype=np.float64)
        qualities = np.array([sound[name].qualities for name in names], dtype=np.float64)
        raw = lacks(costs, qualities, np.zeros(qualities.shape[1]))
        beyond = np.maximum(lacks(costs, qualities, np.asarray(self.noise)), 0.0)
        points = np.column_stack([costs, qualities])
        tied = beyond == beyond[me]
        alone = spread(points[tied])
        better = int((beyond < beyond[me]).sum())
        rank = better + int((alone > alone[tied[:me].sum()]).sum())

        def twin() -> str | None:
            found = self._twin(me, [sound[name].kept for name in names], points, qualities, beyond)
            return None if found is None else names[found]

        return self.decide(Comparison(len(names), float(raw[me]), beyond[me] > 0, rank, twin))

    @staticmethod
    def too_few(num_trials: int) -> Verdict:
        """The verdict where there are no more than `min_peers` trials."""
        return Verdict(True, 0.0, 0, num_trials, "too few others to compare with")

    def decide(self, found: Comparison) -> Verdict:
        """The verdict on a trial that is sound and has enough others to be compared with."""
        rank, lack = found.rank, found.lack
        quota = max(1, math.ceil(self.keep * found.num_trials))
        if found.below:
            place = f"rank {rank + 1} of {found.num_trials}, {quota} go on"
            return Verdict(
                rank < quota, lack, rank, quota, f"{lack:.4g} below the front at its cost; {place}"
            )
        where = "on the front" if lack <= 0 else f"{lack:.4g} below the front, within the noise"
        twin = found.twin() if rank >= quota else None
        if twin is not None:
            reason = f"{where}, but {twin} stands beside it and is at least as good"
            return Verdict(False, lack, rank, quota, reason)
        return Verdict(True, lack, rank, quota, where)

    def _twin(
        self,
        me: int,
        kept: Sequence[bool],
        points: NDArray[np.float64],
        qualities: NDArray[np.float64],
        beyond: NDArray[np.float64],
    ) -> int | None:
        """The nearest kept trial near the front that makes `me` superfluous."""
        extent = np.ptp(points, axis=0)
        scaled = (points - points[me]) / np.where(extent > 0, extent, 1.0)
        distances = np.linalg.norm(scaled, axis=1)
        rivals = np.asarray(kept) & (beyond <= 0) & (qualities >= qualities[me]).all(axis=1)
        rivals[me] = False
        distances[~rivals] = np.inf
        nearest = int(np.argmin(distances))
        return nearest if distances[nearest] < self.min_spread else None


def finals_rungs(grace_period: int, epochs: int, reduction_factor: float) -> list[int]:
    """`geometric_rungs` of trainings of so many epochs, however few; none is the last epoch."""
    grace = min(grace_period, epochs - 1) or 1
    return geometric_rungs(grace, max(2, epochs), reduction_factor)


def geometric_rungs(grace_period: int, max_t: int, reduction_factor: float) -> list[int]:
    """`grace_period`, then each `reduction_factor` times the one before, all below `max_t`.

    Raises:
        ValueError: `grace_period` is under 1 or not below `max_t`.
    """
    if not 1 <= grace_period < max_t:
        raise ValueError(f"grace_period must be in 1..{max_t - 1}, got {grace_period}")
    rungs, rung = [], float(grace_period)
    while round(rung) < max_t:
        rungs.append(round(rung))
        rung *= reduction_factor
    return rungs


def lacks(
    costs: NDArray[np.float64], qualities: NDArray[np.float64], margin: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What each trial lacks against the common front at its own cost.

    A trial lacks as much as it would have to gain, in every quality at once, so that nothing of
    no higher cost beats it in all of them by more than `margin`. With one quality this is the
    height of the front's staircase above the trial.

    Args:
        costs: `[n, c]`, to minimise.
        qualities: `[n, q]`, to maximise.
        margin: `[q]` or `[1]`, in the qualities' units.

    Returns:
        `[n]`, in the quality's units where there is one, else in ranges of the qualities.
    """
    if costs.shape[1] == 1 and qualities.shape[1] == 1:
        # The usual case, a hundred times faster: one walk up the staircase.
        order = np.argsort(costs[:, 0], kind="stable")
        stairs = np.maximum.accumulate(qualities[order, 0])
        step = np.searchsorted(costs[order, 0], costs[:, 0], side="right") - 1
        height: NDArray[np.float64] = stairs[step] - qualities[:, 0] - margin
        return height
    scale = np.ones(qualities.shape[1])
    if qualities.shape[1] > 1:
        extent = np.ptp(qualities, axis=0)
        scale = np.where(extent > 0, extent, 1.0)
    directions = [False] * costs.shape[1] + [True] * qualities.shape[1]
    front = np.flatnonzero(non_dominated(np.column_stack([costs, qualities]), directions))
    gains = (qualities[front][None, :, :] - qualities[:, None, :] - margin) / scale
    affordable = (costs[front][None, :, :] <= costs[:, None, :]).all(axis=2)
    shortfall: NDArray[np.float64] = np.where(affordable, gains.min(axis=2), -np.inf).max(axis=1)
    return shortfall
