"""Evolution over schedules: what to score next, and which of the scored to train.

The two objectives are the cost, known beforehand, and a quality measured without training. Every
child is made for a cost: the dearest schedule of its shape that keeps to it. Where a front over all
costs is wanted, these are spread over the whole range; where the best schedule within a bound is,
all children are as dear as the bound allows, and only their shapes are searched.

A child begins as its parent does. From some layer on it drops other shares, in which its parent's
and another's are mixed and moved: far at first and little at the end. Schedules that begin alike
are cheap to score together (`pipelines/search/shared_prefixes.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from tokenpool import Schedule
from tune_spaces.pareto import front_ranks
from tune_spaces.shapes import constant_number, shaped
from tune_spaces.space import Arm, Candidate, ScheduleSpace
from tune_spaces.surrogate import LEAST_PER_ARM, ScheduleSurrogate

_ATTEMPTS_PER_CHILD, _FRUITLESS = 50, 200
_RELIABLE = 0.6
# Shapes of one parameter that a first generation has, in this order; None drops as many tokens at
# each layer.
_SHAPES = (0.0, -1.0, None, -0.5, 0.5, -1.5, -0.7, -2.0, -0.25, 1.0)
# Costs that differ by less, in parts, are as good as equal.
_SAME_COST = 0.01
# A parent from so far away on a log axis of the cost has to be one front better.
_FAR = 0.1
# At the beginning and at the end: among how many a child's parents are chosen, and the standard
# deviation by which it moves the logarithm of what a layer drops.
_PARENTS, _STEPS = (8, 3), (0.7, 0.15)
_RECOMBINED, _OF_ANOTHER_ARM = 0.3, 0.1
_LEAST_DROP = 0.01  # a layer that drops nothing can come to drop something

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """A candidate with its quality; a greater one is better."""

    candidate: Candidate
    quality: float


def first_generation(
    space: ScheduleSpace,
    rng: np.random.Generator,
    count: int,
    seeds: Sequence[Candidate] = (),
    targets: Sequence[float] = (),
    log_cost: bool = False,
) -> list[Candidate]:
    """Up to `count` different candidates: the seeds, shapes of one parameter, then random ones.

    An arm is a width with a method. Of more seeds than that, each arm has its share, spread over
    its cost. Two thirds of what they leave open are shapes that a person would try, such as a
    constant keep-rate: hard to beat by chance, and good parents. The random ones are spread over
    each arm's own range of cost.

    Args:
        space: the space that is searched.
        rng: the source of randomness.
        count: how many candidates; a space that has fewer gives fewer.
        seeds: the candidates to begin with.
        targets: the GMACs at which schedules are wanted; the seeds are brought there, and nothing
            is drawn as long as there is anything else. Empty: they are wanted everywhere.
        log_cost: whether costs are spread evenly on a log axis.
    """
    if targets:
        at_targets = [scaled(space, seed, target) for seed in seeds for target in targets]
        seeds = [candidate for candidate in at_targets if candidate is not None]
    chosen = {candidate.key: candidate for candidate in _share_out(seeds, count)}
    wanted = len(chosen) + (count - len(chosen) if targets else 2 * (count - len(chosen)) // 3)
    for candidate in _simple(space, wanted - len(chosen), targets, log_cost):
        if len(chosen) < wanted:
            chosen.setdefault(candidate.key, candidate)
    if targets and chosen:
        return list(chosen.values())
    for _ in range(_ATTEMPTS_PER_CHILD):
        missing = count - len(chosen)
        if missing <= 0:
            break
        arms = list(space.cost_ranges)
        for index, (width, method) in enumerate(arms):
            share = missing // len(arms) + (index < missing % len(arms))
            for candidate in space.sample(rng, share, width=width, method=method) if share else []:
                chosen.setdefault(candidate.key, candidate)
    return list(chosen.values())[:count]


def _simple(
    space: ScheduleSpace, count: int, targets: Sequence[float], log_cost: bool
) -> Iterator[Candidate]:
    """Shapes of one parameter: all of them at each target, or each at another of many costs."""
    arms = list(space.cost_ranges)
    if targets:
        yield from (
            found
            for power in _SHAPES
            for arm in arms
            for target in targets
            if (found := _shaped(space, arm, power, target)) is not None
        )
        return
    share = -(-count // len(arms))
    for place in range(share):
        for arm in arms:
            target = _at(space.cost_ranges[arm], (place + 1) / (share + 1), log_cost)
            turn = place % len(_SHAPES)
            # Not every shape reaches every cost.
            tried = (_shaped(space, arm, p, target) for p in (*_SHAPES[turn:], *_SHAPES[:turn]))
            found = next((candidate for candidate in tried if candidate is not None), None)
            if found is not None:
                yield found


def _shaped(space: ScheduleSpace, arm: Arm, power: float | None, target: float) -> Candidate | None:
    """The shape of one of `_SHAPES` within a cost, if the space has it."""
    width, method = arm

    def cost(schedule: Schedule) -> float:
        return space.cost(width, schedule, method)

    if power is None:
        schedule = constant_number(space.depth, space.patches, cost, target)
    else:
        schedule = shaped(space.depth, space.patches, power, cost, target)
    if schedule is None:
        return None
    on_grid = space.decode(space.encode(schedule))
    candidate = Candidate(width, on_grid, cost(on_grid), method)
    return candidate if space.contains(candidate) else None


def _share_out(seeds: Sequence[Candidate], count: int) -> list[Candidate]:
    """`count` of the seeds, as many of each arm as there are or its share allows."""
    if len(seeds) <= count:
        return list(seeds)
    costs = np.array([seed.gmacs for seed in seeds])
    arms = {seed.arm for seed in seeds}
    members = [np.array([i for i, seed in enumerate(seeds) if seed.arm == arm]) for arm in arms]
    kept: list[int] = []
    # The smallest arms first: what they leave over of their share is the others'.
    for done, mine in enumerate(sorted(members, key=lambda m: (len(m), m[0]))):
        share = min(len(mine), (count - len(kept)) // (len(members) - done))
        kept += spread_over_cost(costs, mine, share)
    return [seeds[i] for i in sorted(kept)]


def next_generation(
    space: ScheduleSpace,
    rng: np.random.Generator,
    scored: Sequence[Scored],
    count: int,
    *,
    targets: Sequence[float] = (),
    log_cost: bool = False,
    progress: float = 0.5,
    oversample: int = 6,
) -> list[Candidate]:
    """`count` candidates not scored yet: children of the best of their cost.

    Where a surrogate fitted to what is scored can be relied on, `oversample` times as many
    children are bred, and those it expects most of are returned.

    Args:
        space: the space that is searched.
        rng: the source of randomness.
        scored: all that is scored so far.
        count: how many candidates; a small space may give fewer.
        targets: the GMACs at which schedules are wanted; empty: they are wanted everywhere.
        log_cost: whether costs are spread evenly on a log axis.
        progress: the share of the search that is over: children come to resemble their parents.
        oversample: how many children are bred for each one returned; 1 does without the surrogate.
    """
    surrogate = _reliable_surrogate(space, scored) if oversample > 1 else None
    breeder = _Breeder(space, rng, scored, progress)
    children = breeder.children(count * oversample if surrogate else count, targets, log_cost)
    if surrogate is None or len(children) <= count:
        return children[:count]
    return _most_promising(surrogate, scored, children, count)


class _Breeder:
    """Makes children of what is scored, as many of each arm, however it scores untrained."""

    def __init__(
        self,
        space: ScheduleSpace,
        rng: np.random.Generator,
        scored: Sequence[Scored],
        progress: float,
    ) -> None:
        self._space, self._rng = space, rng
        self._known = {entry.candidate.key for entry in scored}
        self._step = _between(_STEPS, progress)
        self._num_parents = max(1, round(_between(_PARENTS, progress)))
        self._arms = list(space.cost_ranges)
        self._pools: dict[Arm, tuple[list[Candidate], Floats, Floats]] = {}
        for arm in self._arms:
            own = [entry for entry in scored if entry.candidate.arm == arm]
            costs = np.log([entry.candidate.gmacs for entry in own])
            bins = np.round(costs / _SAME_COST)
            ranks = front_ranks([(b, e.quality) for b, e in zip(bins, own, strict=True)])
            pool = [entry.candidate for entry in own]
            self._pools[arm] = pool, costs, np.asarray(ranks, dtype=np.float64)

    def children(self, count: int, targets: Sequence[float], log_cost: bool) -> list[Candidate]:
        """New candidates, `count` of them or as many as are found.

        Args:
            count: how many are wanted.
            targets: the GMACs at which they are wanted; empty: they are wanted everywhere.
            log_cost: whether costs are spread evenly on a log axis.
        """
        found: list[Candidate] = []
        arms = cycle(self._arms)
        attempt = last = 0
        # Where nothing new came of so many attempts, a small space is all known.
        while len(found) < count and attempt - last < _FRUITLESS:
            attempt += 1
            arm = next(arms)
            # Spread over the range whatever was found there: one after the other of `count` parts.
            place = (attempt % count + self._rng.random()) / count
            target = (
                targets[attempt % len(targets)]
                if targets
                else _at(self._space.cost_ranges[arm], place, log_cost)
            )
            child = self._child(arm, target)
            if child is not None and child.key not in self._known and self._space.contains(child):
                self._known.add(child.key)
                found.append(child)
                last = attempt
        return found

    def _child(self, arm: Arm, target: float) -> Candidate | None:
        """A candidate of this arm within a cost, or None where the attempt came to nothing."""
        rng, depth = self._rng, self._space.depth
        from_arm = arm
        if len(self._arms) > 1 and (rng.random() < _OF_ANOTHER_ARM or not self._pools[arm][0]):
            from_arm = self._arms[int(rng.integers(len(self._arms)))]
        parents = self._parents(from_arm, target)
        if not parents:
            return None
        one, two = (parents[int(len(parents) * rng.random() ** 2)] for _ in range(2))
        first = int(rng.integers(0, max(1, depth - 1)))
        drops = -self._space.encode(one.schedule)[first:]
        if rng.random() < _RECOMBINED:
            drops = (drops - self._space.encode(two.schedule)[first:]) / 2
        moved = np.zeros(len(drops))
        # Few layers or all of them: what one takes, the bound makes the others give.
        chosen = rng.permutation(len(drops))[: int(rng.choice([1, 2, len(drops)]))]
        moved[chosen] = rng.normal(size=len(chosen)) * self._step
        drops = np.maximum(drops, _LEAST_DROP * (moved > 0)) * np.exp(moved)
        if not drops.any():
            return None
        child = self._space.at_cost(arm, drops, target, tuple(one.schedule)[:first])
        return child if child.gmacs <= target else None  # what it begins with may be too dear

    def _parents(self, arm: Arm, target: float) -> list[Candidate]:
        """The best parents for a cost: those nearest to it, of the foremost fronts."""
        pool, costs, ranks = self._pools[arm]
        behind = ranks + np.abs(costs - math.log(target)) / _FAR
        return [pool[i] for i in np.argsort(behind, kind="stable")[: self._num_parents]]


def scaled(space: ScheduleSpace, candidate: Candidate, target: float) -> Candidate | None:
    """The same shape at another cost.

    Args:
        space: the space that is searched.
        candidate: the candidate that has the shape.
        target: the cost in GMACs.

    Returns:
        None where the shape does not reach the cost, or the space does not have it.
    """
    drops = -space.encode(candidate.schedule)
    if not drops.any():
        return None
    found = space.at_cost(candidate.arm, drops, target)
    return found if found.gmacs <= target and space.contains(found) else None


def _at(ends: tuple[float, float], place: float, log_cost: bool) -> float:
    """A cost between two: at 0 the first, at 1 the second."""
    return _between(ends, place) if log_cost else ends[0] + (ends[1] - ends[0]) * place


def _between(ends: tuple[float, float], share: float) -> float:
    """From the first to the second on a log axis."""
    return float(ends[0] ** (1 - share) * ends[1] ** share)


def _reliable_surrogate(space: ScheduleSpace, scored: Sequence[Scored]) -> ScheduleSurrogate | None:
    """A surrogate fitted to all that is scored, if it is known to order schedules well."""
    arms = [entry.candidate.arm for entry in scored]
    if min((arms.count(arm) for arm in set(arms)), default=0) < LEAST_PER_ARM:
        return None
    surrogate = ScheduleSurrogate(
        space.patches,
        arms,
        [list(entry.candidate.schedule) for entry in scored],
        [entry.quality for entry in scored],
    )
    return surrogate if surrogate.reliability >= _RELIABLE else None


def _most_promising(
    surrogate: ScheduleSurrogate,
    scored: Sequence[Scored],
    children: Sequence[Candidate],
    count: int,
) -> list[Candidate]:
    """From each slice of the cost, the child expected highest above the front known there.

    As many slices as children are wanted: taking several of a slice, they came out so alike that
    evolution ended behind plain sampling.
    """
    costs = np.array([child.gmacs for child in children])
    expected = surrogate.predict(
        [child.arm for child in children], [list(child.schedule) for child in children]
    )
    known = np.array([entry.candidate.gmacs for entry in scored])
    order = np.argsort(known, kind="stable")
    stairs = np.maximum.accumulate(surrogate.scores[order])
    step = np.searchsorted(known[order], costs, side="right") - 1
    # Below the cheapest one known nothing is known: whatever is expected there is a gain.
    height = np.where(step >= 0, stairs[np.maximum(step, 0)], surrogate.scores.min())
    gain = expected - height
    slices = np.array_split(np.argsort(costs, kind="stable"), count)
    chosen = [int(members[np.argmax(gain[members])]) for members in slices]
    return [children[i] for i in chosen]


def select(scored: Sequence[Scored], count: int) -> list[Scored]:
    """Choose `count` entries: first those of the best fronts, then spread evenly over the cost.

    Whole fronts are taken as long as they fit (non-dominated sorting); of the last one, that
    does not fit, the entries nearest to evenly spaced costs are taken.
    """
    if count >= len(scored):
        return list(scored)
    points = np.array([[entry.candidate.gmacs, entry.quality] for entry in scored])
    ranks = front_ranks(points)
    chosen: list[int] = []
    for rank in range(int(ranks.max()) + 1):
        members = np.flatnonzero(ranks == rank)
        if len(chosen) + len(members) > count:
            chosen += spread_over_cost(points[:, 0], members, count - len(chosen))
            break
        chosen += members.tolist()
    return [scored[i] for i in chosen]


def spread_over_cost(costs: np.ndarray, members: np.ndarray, count: int) -> list[int]:
    """Choose members as evenly spaced in cost as they allow, the two ends among them.

    Args:
        costs: the cost of everything.
        members: the indices to choose from.
        count: how many to choose.
    """
    ordered = members[np.argsort(costs[members], kind="stable")]
    if count >= len(ordered) or count < 1:
        return [int(i) for i in ordered[:count]]
    left = list(ordered)
    targets = np.linspace(costs[ordered[0]], costs[ordered[-1]], count)
    chosen: list[int] = []
    for target in targets:
        nearest = min(range(len(left)), key=lambda i: abs(costs[left[i]] - target))
        chosen.append(int(left.pop(nearest)))
    return chosen
