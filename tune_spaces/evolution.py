"""Evolution over schedules: what to score next, and which of the scored to train.

The two objectives are the cost, known beforehand, and a quality measured without training. A
front over all costs is wanted, not one best point, so parents and finalists are taken from
every slice of the cost range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tune_spaces.pareto import front_ranks
from tune_spaces.space import Candidate, ScheduleSpace
from tune_spaces.surrogate import LEAST_PER_ARM, ScheduleSurrogate

_CROSSOVER_RATE = 0.3
_ATTEMPTS_PER_CHILD = 50
_RELIABLE = 0.6
# The constant keep-rates of the first generation, from the least to the most.
_RATES = (0.45, 0.95)


@dataclass(frozen=True)
class Scored:
    """A candidate with its quality; greater is better."""

    candidate: Candidate
    quality: float


def first_generation(
    space: ScheduleSpace,
    rng: np.random.Generator,
    count: int,
    seeds: Sequence[Candidate] = (),
) -> list[Candidate]:
    """`count` different candidates: the seeds, constant keep-rates, then random ones.

    An arm is a width with a method. Of more seeds than that, each arm has its share, spread over
    its cost. Two thirds of what they leave open are schedules in which every layer keeps the same
    share of its tokens: hard to beat by chance, and good parents. The random ones are spread over
    each arm's own range of cost. A space with fewer candidates gives fewer.
    """
    chosen = {candidate.key: candidate for candidate in _share_out(seeds, count)}
    for candidate in _constant_rates(space, 2 * (count - len(chosen)) // 3):
        chosen.setdefault(candidate.key, candidate)
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


def _constant_rates(space: ScheduleSpace, count: int) -> list[Candidate]:
    """As many of each arm, at evenly spaced rates; those that are within the bounds."""
    arms = list(space.cost_ranges)
    share = count // len(arms)
    found = []
    for rate in np.linspace(*_RATES, share):
        schedule = space.decode(np.full(space.depth, np.log(rate)))
        for width, method in arms:
            cost = space.cost(width, schedule, method)
            candidate = Candidate(width, schedule, cost, method)
            if space.contains(candidate):
                found.append(candidate)
    return found


def _share_out(seeds: Sequence[Candidate], count: int) -> list[Candidate]:
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
    oversample: int = 6,
) -> list[Candidate]:
    """`count` candidates not scored yet: children of parents from every slice of the cost.

    Where a surrogate fitted to what is scored can be relied on, `oversample` times as many
    children are bred, and those it expects most of are returned.

    Args:
        space: what keeps children valid.
        rng: source of randomness.
        scored: all that is known.
        count: how many; a small space may give fewer.
        oversample: children bred for each one returned; 1 does without the surrogate.
    """
    surrogate = _reliable_surrogate(space, scored) if oversample > 1 else None
    children = _breed(space, rng, scored, count * oversample if surrogate else count)
    if surrogate is None or len(children) <= count:
        return children[:count]
    return _most_promising(surrogate, scored, children, count)


def _breed(
    space: ScheduleSpace, rng: np.random.Generator, scored: Sequence[Scored], count: int
) -> list[Candidate]:
    parents = _parents(scored, max(8, len(scored) // 4))
    known = {entry.candidate.key for entry in scored}
    children: list[Candidate] = []
    for _ in range(count * _ATTEMPTS_PER_CHILD):
        if len(children) == count:
            break
        first = parents[rng.integers(len(parents))].candidate
        if rng.random() < _CROSSOVER_RATE:
            child = space.crossover(rng, first, parents[rng.integers(len(parents))].candidate)
            child = space.mutate(rng, child, width_rate=0.0, method_rate=0.0)
        else:
            child = space.mutate(rng, first, num_layers=int(rng.integers(1, 4)))
        if child.key not in known:
            known.add(child.key)
            children.append(child)
    return children


def _parents(scored: Sequence[Scored], count: int) -> list[Scored]:
    """As many of each arm: one that looks worse untrained would not be bred any more."""
    arms = sorted({entry.candidate.arm for entry in scored})
    share = -(-count // len(arms))
    return [
        parent
        for arm in arms
        for parent in select([e for e in scored if e.candidate.arm == arm], share)
    ]


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
    """`count` entries: first those of the best fronts, then spread evenly over the cost.

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
    """`count` of `members`, as evenly spaced in cost as they allow, the two ends among them."""
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
