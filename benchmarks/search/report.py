"""What the contenders' traces say: hypervolume against device-seconds, fronts, and the claims.

Pure functions of traces; every figure of the table comes from here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from benchmarks.search.run import OURS, RANDOM, Traces
from benchmarks.search.steps import Point, Step
from tune_spaces.pareto import non_dominated, normalised_hypervolume

Array = NDArray[np.float64]
# A difference of means counts where 0 is outside its confidence interval of this level.
_CONFIDENCE = 0.95
_GRID = 40


@dataclass(frozen=True)
class Box:
    """Reference point and scaling of the hypervolume, the same for all.

    Attributes:
        gmacs: of the widest dense model; costs are shares of it.
        floor: top-1 below which nothing counts; what is above is a share of 1 - floor.
        bases: the dense models, which everybody has from the start.
        cheapest: GMACs where the box begins, with the cost on a log axis; None: linear, from 0.
    """

    gmacs: float
    floor: float
    bases: tuple[Point, ...]
    cheapest: float | None = None

    def hypervolume(self, points: Sequence[Point]) -> float:
        """Share of the box that the bases and these points dominate."""
        rows = [(self._axis(point.gmacs), point.top1) for point in [*self.bases, *points]]
        return normalised_hypervolume(rows, self._axis(self.gmacs), self.floor)

    def _axis(self, gmacs: float) -> float:
        return gmacs if self.cheapest is None else math.log(gmacs / self.cheapest)


@dataclass(frozen=True)
class Curve:
    """Hypervolume after each step: `seconds` spent and what was reached, both `[n]`, from 0 on."""

    seconds: Array
    hypervolume: Array

    def at(self, seconds: float) -> float:
        """What was reached by then."""
        return float(self.hypervolume[np.searchsorted(self.seconds, seconds, side="right") - 1])

    def time_to(self, hypervolume: float) -> float | None:
        """When so much was reached; None if never."""
        reached = np.flatnonzero(self.hypervolume >= hypervolume - 1e-12)
        return float(self.seconds[reached[0]]) if len(reached) else None


@dataclass(frozen=True)
class Row:
    """A contender in the table; sequences have an entry for each seed.

    Attributes:
        seconds: that it spent.
        models: fine-tunings that were measured, at a rung or at the end.
        hypervolume: at its end.
        time_to_random: when it had reached random search's last hypervolume under the same seed.
        share_of_random: that time as a share of random search's device-seconds.
        excess_seconds: by how much its mean hypervolume is above ours at most, beyond the noise of
            the seeds, at any number of device-seconds; 0 if nowhere.
        excess_top1: by how much its mean front is above ours at most, beyond the noise of the
            seeds, at any GMACs.
        excess_at: the GMACs where that is; None if nowhere.
    """

    name: str
    seconds: list[float]
    models: list[int]
    hypervolume: list[float]
    time_to_random: list[float | None]
    share_of_random: list[float | None]
    excess_seconds: float
    excess_top1: float
    excess_at: float | None


@dataclass(frozen=True)
class Saving:
    """What the found front saves against one plain dense model; sequences by seed.

    Attributes:
        width: of the plain model.
        top1_val: of the plain model, the better of its base and its base fine-tuned as the pooled
            models are.
        gmacs_front: the cheapest point of ours that is at least as accurate on val.
        saved: share of the plain model's GMACs; None where no point of the front is as accurate.
    """

    width: int
    gmacs: float
    top1_val: list[float]
    gmacs_front: list[float | None]
    saved: list[float | None]


def curve(box: Box, steps: Sequence[Step]) -> Curve:
    """Hypervolume against the seconds spent, from the bases on."""
    seconds, volumes = [0.0], [box.hypervolume([])]
    points: list[Point] = []
    spent = 0.0
    for step in steps:
        spent += step.seconds
        if step.point is not None:
            points.append(step.point)
            seconds.append(spent)
            volumes.append(box.hypervolume(points))
    seconds.append(spent)
    volumes.append(volumes[-1])
    return Curve(np.array(seconds), np.array(volumes))


def front(box: Box, steps: Sequence[Step]) -> list[Point]:
    """The points no other beats, the bases among them, by ascending cost."""
    points = [*box.bases, *(step.point for step in steps if step.point is not None)]
    kept = non_dominated([(point.gmacs, point.top1) for point in points])
    best = {
        (point.gmacs, point.top1): point for point, keep in zip(points, kept, strict=True) if keep
    }
    return [best[key] for key in sorted(best)]


def heights(box: Box, points: Sequence[Point], costs: Array) -> Array:
    """The best top-1 that costs no more than each of `costs`, the floor where there is none."""
    gmacs = np.array([point.gmacs for point in points])
    top1 = np.array([point.top1 for point in points])
    affordable = gmacs[None, :] <= costs[:, None]
    return np.where(affordable, top1[None, :], box.floor).max(axis=1).clip(min=box.floor)


def cost_grid(box: Box) -> Array:
    """The GMACs at which fronts are compared: evenly spaced up to the widest dense model's."""
    return np.linspace(box.gmacs / _GRID, box.gmacs, _GRID)


def table(box: Box, traces: Traces) -> list[Row]:
    """All contenders, beside random search and ours under the same seeds."""
    curves = {
        name: {seed: curve(box, steps) for seed, steps in runs.items()}
        for name, runs in traces.items()
    }
    costs = cost_grid(box)
    fronts = {
        name: {seed: heights(box, front(box, steps), costs) for seed, steps in runs.items()}
        for name, runs in traces.items()
    }
    rows = []
    for name, runs in traces.items():
        own = curves[name]
        targets = {seed: curves[RANDOM][seed] for seed in own}
        reached = [own[seed].time_to(targets[seed].hypervolume[-1]) for seed in own]
        shares = [
            None if time is None else time / float(targets[seed].seconds[-1])
            for seed, time in zip(own, reached, strict=True)
        ]
        above_volume = above_top1 = 0.0
        above_at: float | None = None
        if OURS in traces and name != OURS:
            above_volume = _excess_over_time(own, curves[OURS])
            above_top1, above_at = _excess_over_cost(fronts[name], fronts[OURS], costs)
        rows.append(
            Row(
                name,
                seconds=[float(own[seed].seconds[-1]) for seed in own],
                models=[sum(s.point is not None for s in steps) for steps in runs.values()],
                hypervolume=[float(own[seed].hypervolume[-1]) for seed in own],
                time_to_random=reached,
                share_of_random=shares,
                excess_seconds=above_volume,
                excess_top1=above_top1,
                excess_at=above_at,
            )
        )
    return rows


def significant(differences: Array) -> Array:
    """The part of mean differences that is beyond the noise of the seeds.

    Student's t over the paired differences: with three seeds 4.3 standard errors, with five 2.8.
    (Two standard errors of three seeds are exceeded by chance in one of ten comparisons, and there
    are hundreds.)

    Args:
        differences: `[seeds, n]`.

    Returns:
        `[n]`: the mean where the lower end of its 95 % interval is above 0, else 0. Of one seed,
        the difference itself.
    """
    seeds = len(differences)
    mean = differences.mean(axis=0)
    if seeds == 1:
        return np.maximum(mean, 0.0)
    error = differences.std(axis=0, ddof=1) / np.sqrt(seeds)
    errors = float(student_t.ppf((1 + _CONFIDENCE) / 2, seeds - 1))
    return np.where(mean > errors * error, mean, 0.0)


def savings(
    plain: Mapping[int, tuple[float, Sequence[float]]],
    fronts: Sequence[Sequence[tuple[float, float]]],
) -> list[Saving]:
    """GMACs saved at matched top-1 on val.

    Args:
        plain: width → (GMACs, top-1 on val under each seed) of the dense models.
        fronts: under each seed, the (GMACs, top-1 on val) of our front's points.
    """
    found = []
    for width, (gmacs, accuracies) in sorted(plain.items()):
        cheapest = [
            min((cost for cost, top1 in points if top1 >= wanted), default=None)
            for points, wanted in zip(fronts, accuracies, strict=True)
        ]
        saved = [None if cost is None else 1 - cost / gmacs for cost in cheapest]
        found.append(Saving(width, gmacs, list(accuracies), cheapest, saved))
    return found


def _excess_over_time(peer: Mapping[int, Curve], own: Mapping[int, Curve]) -> float:
    """At the end of each step of anybody, up to where all have something to show."""
    seeds = sorted(set(peer) & set(own))
    moments = np.unique(np.concatenate([c[seed].seconds for c in (peer, own) for seed in seeds]))
    differences = np.array(
        [[peer[seed].at(t) - own[seed].at(t) for t in moments] for seed in seeds]
    )
    return float(significant(differences).max(initial=0.0))


def _excess_over_cost(
    peer: Mapping[int, Array], own: Mapping[int, Array], costs: Array
) -> tuple[float, float | None]:
    seeds = sorted(set(peer) & set(own))
    excess = significant(np.array([peer[seed] - own[seed] for seed in seeds]))
    worst = int(np.argmax(excess))
    if excess[worst] <= 0:
        return 0.0, None
    return float(excess[worst]), float(costs[worst])
