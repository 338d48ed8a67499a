"""The space that is searched: widths × monotone token schedules × methods, with hard bounds.

Every way to make a schedule here keeps it non-increasing and on the grid by construction, so
nothing has to be repaired afterwards. The cost of a candidate is known without training; it comes
in as a function, so that the space does not care how MACs are counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tokenpool import Schedule
from tune_spaces.candidate import Candidate
from tune_spaces.limits import Cost, Limit

Arm = tuple[int, str]
"""A width and a method."""

_BISECTIONS = 16
_CLOSE = 0.998
_ATTEMPTS = 32
_LEAST_DROP = 1e-3


class ScheduleSpace:
    """Widths × schedules `patches ≥ k₁ ≥ … ≥ k_depth ≥ min_tokens` on a grid × methods.

    Args:
        depth: the number of transformer blocks, one count for each.
        patches: the patch tokens that enter the first block.
        widths: the embedding widths to choose from.
        cost: gives the GMACs of a width with a schedule, clustering included; for several methods
            (or one with a name) there is one for each, by name.
        min_tokens: the least patch tokens a block may keep.
        step: counts are multiples of this, and `patches` itself; 1 allows all integers.
        max_gmacs: a hard upper bound on the cost; None: there is none.
        min_gmacs: a hard lower bound on the cost.
        limits: further hard bounds: latency, parameters, memory.

    Raises:
        ValueError: if a size is impossible, or no schedule of any width is within the bounds.
    """

    def __init__(
        self,
        depth: int,
        patches: int,
        widths: Sequence[int],
        cost: Cost | Mapping[str, Cost],
        *,
        min_tokens: int = 1,
        step: int = 1,
        max_gmacs: float | None = None,
        min_gmacs: float = 0.0,
        limits: Sequence[Limit] = (),
    ) -> None:
        if depth < 1 or patches < 1 or step < 1:
            raise ValueError(
                f"depth, patches and step must be at least 1, got {depth}, {patches} and {step}"
            )
        if not 1 <= min_tokens <= patches:
            raise ValueError(f"min_tokens must be in 1..{patches}, got {min_tokens}")
        if not widths:
            raise ValueError("a space needs at least one width")
        self._costs: dict[str, Cost] = dict(cost) if isinstance(cost, Mapping) else {"": cost}
        if not self._costs:
            raise ValueError("a space needs at least one method")
        self.depth = depth
        self.patches = patches
        self.max_gmacs = math.inf if max_gmacs is None else float(max_gmacs)
        self.min_gmacs = float(min_gmacs)
        self.limits = tuple(limits)
        grid = [count for count in range(step, patches, step) if count >= min_tokens]
        self.levels: NDArray[np.int64] = np.array([*grid, patches], dtype=np.int64)
        ranges = {
            (width, method): self._cost_range(width, method)
            for width in sorted(set(widths))
            for method in self._costs
        }
        feasible = {
            arm: (max(low, self.min_gmacs), min(high, self.max_gmacs))
            for arm, (low, high) in ranges.items()
            if low <= self.max_gmacs and high >= self.min_gmacs
        }
        if not feasible:
            (width, _), (low, high) = min(ranges.items(), key=lambda item: item[1][0])
            raise ValueError(
                f"no schedule costs {self.min_gmacs:g} to {self.max_gmacs:g} GMACs: width {width} "
                f"costs {low:.4g} at {self.levels[0]} tokens per block and {high:.4g} when dense"
            )
        self.cost_ranges = self._within_limits(feasible)
        self.widths = tuple(sorted({width for width, _ in self.cost_ranges}))
        self.methods = tuple(m for m in self._costs if any(arm[1] == m for arm in self.cost_ranges))

    def cost(self, width: int, schedule: Schedule, method: str | None = None) -> float:
        """The GMACs of a model.

        Args:
            width: the embedding width.
            schedule: the patch tokens kept after each block.
            method: one of the space's methods; None: the first one.
        """
        return float(self._costs[self.methods[0] if method is None else method](width, schedule))

    def dense(self) -> Schedule:
        """The schedule that keeps every token."""
        return Schedule((self.patches,) * self.depth)

    def smallest(self) -> Schedule:
        """The schedule that keeps the fewest tokens everywhere."""
        return Schedule((int(self.levels[0]),) * self.depth)

    def candidate(
        self, width: int, schedule: Sequence[int], method: str | None = None
    ) -> Candidate:
        """A candidate of this space, with its cost.

        Args:
            width: the embedding width.
            schedule: the patch tokens kept after each block.
            method: one of the space's methods; None: the first one.

        Raises:
            ValueError: if the schedule is not of this space, or the cost is out of bounds.
        """
        chosen = self.methods[0] if method is None else method
        if chosen not in self.methods:
            raise ValueError(f"method {chosen} is not in the space: {self.describe()}")
        candidate = self._candidate((width, chosen), np.asarray(schedule, dtype=np.int64))
        if not self.contains(candidate):
            raise ValueError(
                f"width {width} with {','.join(map(str, schedule))} ({candidate.gmacs:.4g} GMACs) "
                f"is not in the space: {self.describe()}"
            )
        return candidate

    def contains(self, candidate: Candidate) -> bool:
        """Whether the candidate is on the grid and within the bounds."""
        counts = candidate.schedule
        return (
            candidate.arm in self.cost_ranges
            and len(counts) == self.depth
            and bool(np.isin(counts, self.levels).all())
            and self.min_gmacs <= candidate.gmacs <= self.max_gmacs
            and all(
                limit.allows(candidate.width, counts, candidate.method) for limit in self.limits
            )
        )

    def describe(self) -> str:
        """One line for people."""
        bounds = ""
        if self.min_gmacs > 0 or self.max_gmacs < math.inf:
            bounds = f", {self.min_gmacs:g} to {self.max_gmacs:g} GMACs"
        bounds += "".join(f", {limit.name} up to {limit.maximum:g}" for limit in self.limits)
        methods = f"; {', '.join(self.methods)}" if any(self.methods) else ""
        return (
            f"widths {', '.join(map(str, self.widths))}{methods}; {self.depth} blocks of "
            f"{self.levels[0]} to {self.patches} tokens, {len(self.levels)} levels{bounds}"
        )

    def encode(self, schedule: Sequence[int]) -> NDArray[np.float64]:
        """A schedule for a surrogate: log keep-rate of each block against the one before.

        Returns:
            `[depth]`, each ≤ 0; 0 where a block keeps all that came in.
        """
        counts = np.asarray([self.patches, *schedule], dtype=np.float64)
        rates: NDArray[np.float64] = np.diff(np.log(counts))
        return rates

    def decode(self, encoded: NDArray[np.float64]) -> Schedule:
        """The schedule on the grid nearest to an encoding; positive entries count as 0."""
        rates = np.minimum(np.asarray(encoded, dtype=np.float64), 0.0)
        return Schedule(self._snap(self.patches * np.exp(np.cumsum(rates))).tolist())

    def sample(
        self,
        rng: np.random.Generator,
        count: int = 1,
        *,
        width: int | None = None,
        method: str | None = None,
    ) -> list[Candidate]:
        """Random candidates spread evenly over the cost range.

        Uniform draws of monotone sequences bunch in the middle of the range. So each candidate
        gets a target cost first, one from each of `count` equal slices of the range, then a width
        and method that can reach it, then a random curve over the layers that is scaled until its
        cost just stays under the target.

        Args:
            rng: the source of randomness.
            count: how many candidates; duplicates are possible in small spaces.
            width: only this width, if it is given.
            method: only this method, if it is given.

        Raises:
            ValueError: if these are not in the space, or the bounds are too tight for its grid.
        """
        ranges = {
            arm: bounds
            for arm, bounds in self.cost_ranges.items()
            if width in (None, arm[0]) and method in (None, arm[1])
        }
        if not ranges:
            wanted = f"width {width}" if method is None else f"width {width} with {method}"
            raise ValueError(f"{wanted} is not in the space: {self.describe()}")
        low = min(bounds[0] for bounds in ranges.values())
        high = max(bounds[1] for bounds in ranges.values())
        targets = low + (high - low) * (rng.permutation(count) + rng.random(count)) / max(count, 1)
        found = []
        for target in targets:
            able = [arm for arm, bounds in ranges.items() if bounds[0] <= target <= bounds[1]]
            # Widths' ranges may leave a gap between them: then the nearest one serves.
            chosen = (
                able[int(rng.integers(len(able)))]
                if able
                else self._nearest_arm(float(target), ranges)
            )
            found.append(self._sample_at(rng, chosen, float(target)))
        return found

    def _sample_at(self, rng: np.random.Generator, arm: Arm, target: float) -> Candidate:
        """A random curve over the layers, scaled to the dearest schedule within `target`."""
        floor, ceiling = self.cost_ranges[arm]
        for attempt in range(_ATTEMPTS):
            # A small concentration gives a few abrupt drops, a large one a smooth decline.
            concentration = float(np.exp(rng.uniform(np.log(0.15), np.log(3.0))))
            drops = rng.dirichlet(np.full(self.depth, concentration))
            # The floor lets even the first block come down to the lowest level.
            drops[0] = max(drops[0], _LEAST_DROP)
            candidate = self.at_cost(arm, drops, target)
            if self.contains(candidate):
                return candidate
            if self.limits and attempt >= _ATTEMPTS // 8:
                # Another bound than the cost binds up here: come down to where it does not.
                target = floor + 0.9 * (target - floor)
            elif candidate.gmacs < self.min_gmacs:
                target += 0.1 * (ceiling - target)  # no schedule is between the bound and it
        raise ValueError(
            f"found no schedule of width {arm[0]} within {self.min_gmacs:g} to "
            f"{self.max_gmacs:g} GMACs: widen the bounds or use a finer step than the present one"
        )

    def at_cost(
        self, arm: Arm, drops: NDArray[np.float64], target: float, head: Sequence[int] = ()
    ) -> Candidate:
        """The dearest candidate within a target that drops tokens in these proportions, or nearly.

        Args:
            arm: the width and method.
            drops: what each layer after `head` drops of the logarithm of the number of tokens, as
                parts of what all of them do. Not below 0, and not all of them 0.
            target: the cost in GMACs.
            head: what the first layers keep.

        Returns:
            The cheapest there is where the target is out of reach: see `contains`.
        """
        falls = np.cumsum(drops / np.sum(drops))
        incoming = head[-1] if len(head) else self.patches

        def curve(log_steepness: float) -> Candidate:
            tail = self._snap(incoming * np.exp(-math.exp(log_steepness) * falls))
            return self._candidate(arm, np.array([*head, *np.minimum(tail, incoming)]))

        # Bisection on how steep it is, on a log axis, from dense to the lowest level.
        gentle = math.log(0.1 / self.patches)
        steep = math.log(math.log(2 * self.patches) / _LEAST_DROP)
        best = curve(steep)
        for _ in range(_BISECTIONS):
            middle = (gentle + steep) / 2
            candidate = curve(middle)
            if candidate.gmacs > target:
                gentle = middle
                continue
            best, steep = candidate, middle
            if candidate.gmacs > _CLOSE * target:
                break
        return best

    def mutate(
        self,
        rng: np.random.Generator,
        parent: Candidate,
        *,
        num_layers: int = 1,
        width_rate: float = 0.1,
        method_rate: float = 0.1,
    ) -> Candidate:
        """A neighbour of `parent`: some layers moved within the counts of *their* neighbours.

        Args:
            rng: the source of randomness.
            parent: a candidate of this space.
            num_layers: how many moves are made, one layer each.
            width_rate: the probability that the width changes too.
            method_rate: the probability that the method changes too.

        Returns:
            A candidate within the bounds; the parent itself where none was found.
        """
        for _ in range(_ATTEMPTS):
            counts = np.asarray(parent.schedule, dtype=np.int64)
            for _ in range(num_layers):
                counts = self._move_one(rng, counts)
            width = parent.width
            if len(self.widths) > 1 and rng.random() < width_rate:
                width = int(rng.choice([w for w in self.widths if w != parent.width]))
            method = parent.method
            if len(self.methods) > 1 and rng.random() < method_rate:
                method = str(rng.choice([m for m in self.methods if m != parent.method]))
            child = self._candidate((width, method), counts)
            if child.key != parent.key and self.contains(child):
                return child
        return parent

    def _move_one(self, rng: np.random.Generator, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """`counts` with one layer set to another level between its neighbours' counts."""
        ceilings = np.concatenate(([self.patches], counts[:-1]))
        floors = np.concatenate((counts[1:], [self.levels[0]]))
        movable = np.flatnonzero(ceilings > floors)
        if len(movable) == 0:
            return counts
        layer = int(rng.choice(movable))
        options = self.levels[(self.levels >= floors[layer]) & (self.levels <= ceilings[layer])]
        options = options[options != counts[layer]]
        if len(options) == 0:
            return counts
        moved = counts.copy()
        moved[layer] = rng.choice(options)
        return moved

    def _snap(self, counts: NDArray[np.float64]) -> NDArray[np.int64]:
        """Nearest levels; a half goes up. Monotone, so it keeps an order that is there."""
        boundaries = (self.levels[1:] + self.levels[:-1]) / 2
        return self.levels[np.searchsorted(boundaries, counts, side="right")]

    def _candidate(self, arm: Arm, counts: NDArray[np.int64]) -> Candidate:
        width, method = arm
        schedule = Schedule(counts.tolist())
        return Candidate(width, schedule, float(self._costs[method](width, schedule)), method)

    def _cost_range(self, width: int, method: str) -> tuple[float, float]:
        cost = self._costs[method]
        return float(cost(width, self.smallest())), float(cost(width, self.dense()))

    def _within_limits(
        self, ranges: dict[Arm, tuple[float, float]]
    ) -> dict[Arm, tuple[float, float]]:
        """Leaves out widths of which even the smallest schedule breaks a limit."""
        smallest = self.smallest()
        kept = {
            arm: bounds
            for arm, bounds in ranges.items()
            if all(limit.allows(arm[0], smallest, arm[1]) for limit in self.limits)
        }
        if not kept:
            width, method = min(ranges)
            broken = next(
                limit for limit in self.limits if not limit.allows(width, smallest, method)
            )
            raise ValueError(
                f"no schedule keeps {broken.name} within {broken.maximum:g}: width {width} has "
                f"{broken.of(width, smallest, method):.4g} at {self.levels[0]} tokens per block"
            )
        return kept

    @staticmethod
    def _nearest_arm(target: float, ranges: dict[Arm, tuple[float, float]]) -> Arm:
        return min(ranges, key=lambda arm: max(ranges[arm][0] - target, target - ranges[arm][1]))
