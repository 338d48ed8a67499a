"""Which schedules tell what pooling costs at each layer, and what a plan makes of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

import tokenpool as tp
from tokenpool.cost import block_macs
from tokenpool.methods import method as method_named
from tune_spaces.planner import DamageTable, PlannedSchedule, plan_front, spread_over_bins
from tune_spaces.space import Candidate, ScheduleSpace

Counts = tuple[int, ...]
# More levels than this make a plan slow, and no better: damages are interpolated anyway.
_MOST_LEVELS = 48


def probe_counts(space: ScheduleSpace, count: int) -> Counts:
    """Token counts to measure at: evenly spaced on a log axis, on the grid, ascending."""
    levels = space.levels.astype(np.float64)
    wanted = np.geomspace(levels[0], levels[-1], max(2, min(count, len(levels))))
    nearest = np.abs(np.log(levels)[None, :] - np.log(wanted)[:, None]).argmin(1)
    return tuple(int(space.levels[i]) for i in sorted(set(nearest.tolist())))


def probes(depth: int, counts: Sequence[int]) -> list[tuple[int, ...]]:
    """Every schedule that has to be measured for `damage_table`, each once.

    Pooling k_in → k_out after layer l is seen in the schedule that brings k_in tokens to layer l
    (all at once, right before it) and leaves with k_out.
    """
    found = {
        _probe(depth, counts, layer, i, j)
        for layer in range(depth)
        for i in range(1, len(counts))
        for j in range(i)
        if layer > 0 or i == len(counts) - 1
    }
    return sorted(found, reverse=True)


def damage_table(
    depth: int, counts: Sequence[int], divergence: Mapping[tuple[int, ...], float]
) -> DamageTable:
    """What k_in → k_out adds at each layer.

    Args:
        depth: blocks.
        counts: ascending; the last is the number of patches.
        divergence: of each of `probes`, the mean KL divergence (nats) of its predictions from the
            dense model's.
    """
    size = len(counts)
    damage = np.zeros((depth, size, size))
    for layer in range(depth):
        for i in range(1, size):
            if layer == 0 and i < size - 1:
                continue  # all patches enter the first layer
            # What bringing k_in tokens here had done already.
            before = 0.0
            if i < size - 1:
                before = divergence[_probe(depth, counts, layer - 1, size - 1, i)]
            for j in range(i):
                damage[layer, i, j] = divergence[_probe(depth, counts, layer, i, j)] - before
    return DamageTable(counts, damage)


def plan(
    space: ScheduleSpace,
    spec: tp.VitSpec,
    method: str,
    table: DamageTable,
    *,
    seeds: int,
    bins: int,
) -> list[tuple[Candidate, float]]:
    """Schedules of one width with the least predicted damage for their cost.

    Args:
        space: what bounds them.
        spec: shapes of the width's model.
        method: of `tp.METHODS`.
        table: measured on the width's model.
        seeds: how many, at least, if there are so many.
        bins: slices of the cost they are taken from.

    Returns:
        Candidates of the space with their predicted damage, by ascending cost; none where the
        method cannot be planned, as what it keeps depends on more than counts.
    """
    levels = _planning_levels(space)
    size = len(levels)
    cost = np.full((space.depth, size, size), np.inf)
    strategy = method_named(tp.parse_method(method)[0])
    own = method if method in space.methods else space.methods[0]
    for i, k_in in enumerate(levels):
        for j, k_out in enumerate(levels[: i + 1]):
            try:
                makes = i == j or strategy.realise(k_in, k_out, None)[0] == k_out
            except ValueError:
                return []
            if makes:
                for layer in range(space.depth):
                    cost[layer, i, j] = block_macs(spec, layer + 1, k_in, k_out, method).gmacs
    dense = tp.vit_macs(spec, space.dense(), method).gmacs
    fixed = dense - sum(cost[layer, -1, -1] for layer in range(space.depth))
    front = plan_front(levels, cost, table.at(levels), fixed_cost=fixed, max_cost=space.max_gmacs)
    # The same costs up to rounding; what else bounds a candidate, only the space knows.
    priced = [
        PlannedSchedule(entry.schedule, space.cost(spec.width, entry.schedule, own), entry.damage)
        for entry in front
    ]
    inside = [
        entry
        for entry in priced
        if space.contains(Candidate(spec.width, entry.schedule, entry.cost, own))
    ]
    return [
        (space.candidate(spec.width, entry.schedule, own), entry.damage)
        for entry in spread_over_bins(inside, seeds, bins)
    ]


def _probe(depth: int, counts: Sequence[int], layer: int, i: int, j: int) -> tuple[int, ...]:
    """All patches, then counts[i] right before block `layer`, then counts[j] from it on."""
    patches, k_in, k_out = counts[-1], counts[i], counts[j]
    if layer == 0:
        return (k_out,) * depth
    return (patches,) * (layer - 1) + (k_in,) + (k_out,) * (depth - layer)


def _planning_levels(space: ScheduleSpace) -> list[int]:
    """The space's levels, thinned evenly on a log axis where they are many."""
    levels = space.levels
    if len(levels) <= _MOST_LEVELS:
        return [int(level) for level in levels]
    wanted = np.geomspace(levels[0], levels[-1], _MOST_LEVELS)
    boundaries = (levels[1:] + levels[:-1]) / 2
    return sorted({int(level) for level in levels[np.searchsorted(boundaries, wanted)]})
