"""A front of schedules from per-layer damages, by dynamic programming over layers × tokens.

Cost is a sum over blocks: what a block and its pooling multiply depends on the tokens that enter
and leave it alone. Damage is taken to be one too: what pooling k_in tokens to k_out after a layer
adds to the divergence from the dense model, measured layer by layer. Then all cheapest-for-their-
damage schedules are found at once, without looking at every schedule there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenpool import Schedule

__all__ = ["DamageTable", "PlannedSchedule", "plan_front", "spread_over_bins"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PlannedSchedule:
    """A schedule of the planned front, with its cost and the damage predicted of it."""

    schedule: Schedule
    cost: float
    damage: float


class DamageTable:
    """Damage of pooling k_in → k_out after each layer, measured at a few counts.

    Args:
        counts: token counts `[n]`, ascending; the last is the number of patches.
        damage: damages `[depth, n, n]`: entry `[l, i, j]` for counts[i] → counts[j] after layer
            l + 1; only j < i is read. Noise is taken out: nothing is below 0, and keeping fewer
            tokens never does less damage.

    Raises:
        ValueError: if the shapes do not agree, counts do not ascend, or a damage is not finite.
    """

    def __init__(self, counts: Sequence[int], damage: Array) -> None:
        self.counts = np.asarray(counts, dtype=np.float64)
        damage = np.asarray(damage, dtype=np.float64)
        size = len(self.counts)
        if damage.ndim != 3 or damage.shape[1:] != (size, size):
            raise ValueError(f"{size} counts need damages [depth, {size}, {size}]")
        if size < 2 or self.counts[0] < 1 or (np.diff(self.counts) <= 0).any():
            raise ValueError(f"counts must ascend from at least 1, got {list(counts)}")
        below = np.tril(np.ones((size, size), dtype=bool), -1)
        if not np.isfinite(damage[:, below]).all():
            raise ValueError("a damage is not finite")
        # From right to left along a row fewer tokens are kept.
        falling = np.where(below, damage, 0.0).clip(min=0.0)[:, :, ::-1]
        self.damage: Array = np.maximum.accumulate(falling, axis=2)[:, :, ::-1] * below
        self.depth = len(damage)

    def at(self, levels: Sequence[int]) -> Array:
        """Damages `[depth, m, m]` between other counts, as the table: 0 where nothing is pooled.

        Linear in log k_in. Along a row the root of the damage is linear in the log of the rate
        k_in / k_out: near the dense model a divergence grows with the square of what was changed.
        Were the damage itself linear between rates far apart, the plan would keep all tokens in
        some layers and drop most in the next. Beyond the least count measured a row goes on as
        steeply as it ended.
        """
        wanted = np.asarray(levels, dtype=np.float64)
        rows = np.log(self.counts)
        found = np.zeros((self.depth, len(wanted), len(wanted)))
        for i, k_in in enumerate(wanted):
            # The least count is the end of the table: no row starts there.
            upper = int(np.clip(np.searchsorted(rows, np.log(k_in)), 2, len(rows) - 1))
            lower = max(upper - 1, 1)
            span = rows[upper] - rows[lower]
            share = float(np.clip((np.log(k_in) - rows[lower]) / span, 0, 1)) if span else 1.0
            rates = np.log(k_in / wanted[:i])
            for layer in range(self.depth):
                low, high = (self._along(layer, row, rates) for row in (lower, upper))
                found[layer, i, :i] = (1 - share) * low + share * high
        return found

    def _along(self, layer: int, row: int, rates: Array) -> Array:
        """Damage of one measured k_in at rates `log(k_in / k_out)`."""
        x = np.log(self.counts[row] / self.counts[: row + 1])[::-1]
        y = np.sqrt(self.damage[layer, row, : row + 1][::-1])
        inside = np.interp(rates, x, y)
        slope = (y[-1] - y[-2]) / (x[-1] - x[-2])
        root: Array = inside + np.maximum(rates - x[-1], 0.0) * slope
        return root**2


def plan_front(
    levels: Sequence[int],
    cost: Array,
    damage: Array,
    *,
    fixed_cost: float = 0.0,
    max_cost: float = np.inf,
    max_labels: int = 2048,
) -> list[PlannedSchedule]:
    """All schedules that no other beats in both cost and damage, from cheapest to dearest.

    A label is a way to reach a count after a layer; of the labels of a count only those are kept
    that no other beats. That is exact; where more than `max_labels` are left, the least damage in
    each of as many slices of the cost is kept, and the front may miss schedules by a slice.

    Args:
        levels: token counts `[m]`, ascending; the last enters the first layer.
        cost: costs `[depth, m, m]`: entry `[l, i, j]`, j ≤ i, that of block l given `levels[i]`
            tokens and keeping `levels[j]`; infinite where the method cannot do that.
        damage: damages `[depth, m, m]`, indexed as the costs.
        fixed_cost: the cost of what is not in the blocks.
        max_cost: the cost above which schedules are left out.
        max_labels: how many labels a count may have (see above).

    Raises:
        ValueError: if the shapes do not agree.
    """
    size = len(levels)
    if cost.shape != damage.shape or cost.shape[1:] != (size, size):
        raise ValueError(
            f"{size} levels need cost and damage [depth, {size}, {size}], not "
            f"{list(cost.shape)} and {list(damage.shape)}"
        )
    nothing = _Labels.of(np.zeros(0), np.zeros(0))
    states = [nothing] * (size - 1) + [_Labels.of(np.array([fixed_cost]), np.zeros(1))]
    layers = [states]
    for layer_cost, layer_damage in zip(cost, damage, strict=True):
        states = [
            _reach(j, states, layer_cost, layer_damage, max_cost, max_labels) for j in range(size)
        ]
        layers.append(states)
    last = layers[-1]
    costs = np.concatenate([labels.cost for labels in last])
    damages = np.concatenate([labels.damage for labels in last])
    owner = np.repeat(np.arange(size), [len(labels.cost) for labels in last])
    place = np.concatenate([np.arange(len(labels.cost)) for labels in last])
    return [
        PlannedSchedule(
            Schedule(_trace_back(layers, levels, int(owner[i]), int(place[i]))),
            float(costs[i]),
            float(damages[i]),
        )
        for i in _non_dominated(costs, damages)
    ]


def spread_over_bins(
    planned: Sequence[PlannedSchedule], count: int, bins: int = 12
) -> list[PlannedSchedule]:
    """At least `count` planned schedules (or all), as many from each of `bins` slices of the cost.

    The slices are equal on a logarithmic axis from the cheapest to the dearest. Within one, those
    taken are spread evenly; what a slice has too few of, the others make up for.

    Args:
        planned: the planned schedules, from cheapest to dearest.
        count: how many are wanted at least.
        bins: how many slices there are.
    """
    if len(planned) <= count:
        return list(planned)
    costs = np.log([max(entry.cost, 1e-12) for entry in planned])
    edges = np.linspace(costs.min(), costs.max(), bins + 1)[1:-1]
    members = [np.flatnonzero(np.searchsorted(edges, costs) == b) for b in range(bins)]
    members = [m for m in members if len(m)]
    share = -(-count // len(members))
    while sum(min(share, len(m)) for m in members) < count:
        share += 1
    chosen: list[int] = []
    for slice_ in members:
        take = min(share, len(slice_))
        chosen += slice_[np.linspace(0, len(slice_) - 1, take).round().astype(int)].tolist()
    return [planned[i] for i in sorted(set(chosen))]


@dataclass(frozen=True)
class _Labels:
    """The ways to reach one count after one layer: costs, damages, and where each came from."""

    cost: Array
    damage: Array
    state: NDArray[np.int64]
    label: NDArray[np.int64]

    @classmethod
    def of(cls, cost: Array, damage: Array) -> _Labels:
        """Labels that come from nowhere."""
        none = np.full(len(cost), -1, dtype=np.int64)
        return cls(cost, damage, none, none)


def _reach(
    j: int, states: Sequence[_Labels], cost: Array, damage: Array, max_cost: float, max_labels: int
) -> _Labels:
    """The labels of count j after a layer, from those of all counts before it."""
    sources = [i for i in range(j, len(states)) if len(states[i].cost) and np.isfinite(cost[i, j])]
    if not sources:
        return _Labels.of(np.zeros(0), np.zeros(0))
    costs = np.concatenate([states[i].cost + cost[i, j] for i in sources])
    damages = np.concatenate([states[i].damage + damage[i, j] for i in sources])
    owner = np.concatenate([np.full(len(states[i].cost), i) for i in sources])
    place = np.concatenate([np.arange(len(states[i].cost)) for i in sources])
    best = _non_dominated(costs, damages)
    best = best[costs[best] <= max_cost]
    if len(best) > max_labels:
        # Ascending in cost and falling in damage: the last of a slice does the least damage.
        slices = np.linspace(costs[best[0]], costs[best[-1]], max_labels + 1)[1:]
        ends = np.searchsorted(costs[best], slices, side="right") - 1
        best = best[np.unique(np.concatenate(([0], ends)))]
    return _Labels(costs[best], damages[best], owner[best], place[best])


def _non_dominated(costs: Array, damages: Array) -> NDArray[np.intp]:
    """Indices of the pairs that no other beats or equals, by ascending cost."""
    order = np.lexsort((damages, costs))
    ordered = damages[order]
    least_before = np.concatenate(([np.inf], np.minimum.accumulate(ordered)[:-1]))
    return order[ordered < least_before]


def _trace_back(
    layers: Sequence[Sequence[_Labels]], levels: Sequence[int], state: int, label: int
) -> list[int]:
    """The counts of the layers that led to a label of a count after the last one."""
    counts: list[int] = []
    for states in reversed(layers[1:]):
        counts.append(int(levels[state]))
        state, label = int(states[state].state[label]), int(states[state].label[label])
    return counts[::-1]
