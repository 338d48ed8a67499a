"""The space that is searched: widths × monotone token schedules, with hard bounds on the cost.

Every way to make a schedule here keeps it non-increasing and on the grid by construction, so
nothing has to be repaired afterwards. The cost of a candidate is known without training; it comes
in as a function, so that the space does not care how MACs are counted.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenpool import Schedule

Cost = Callable[[int, Schedule], float]
"""`cost(width, schedule)` in GMACs; must not fall when a layer keeps more tokens."""

_BISECTIONS = 24
_ATTEMPTS = 32
_LEAST_DROP = 1e-3


@dataclass(frozen=True)
class Limit:
    """A hard upper bound on something other than GMACs, known or predicted before training.

    Attributes:
        name: What is bounded, for messages: "latency_ms", "parameters".
        measure: The quantity for a width with a schedule; must not fall with more tokens.
        maximum: The most that is allowed.
    """

    name: str
    measure: Cost
    maximum: float

    def allows(self, width: int, schedule: Schedule) -> bool:
        """Whether the bound is kept."""
        return self.measure(width, schedule) <= self.maximum


@dataclass(frozen=True)
class Candidate:
    """One point of the space: a model width, the patch tokens kept per block, and their cost."""

    width: int
    schedule: Schedule
    gmacs: float

    @property
    def key(self) -> tuple[int, tuple[int, ...]]:
        """What makes two candidates the same one."""
        return self.width, tuple(self.schedule)


class ScheduleSpace:
    """Widths × schedules `patches ≥ k₁ ≥ … ≥ k_depth ≥ min_tokens` on a grid of token counts.

    Args:
        depth: Number of transformer blocks, one count for each.
        patches: Patch tokens that enter the first block.
        widths: Embedding widths to choose from.
        cost: GMACs of a width with a schedule, clustering included.
        min_tokens: The least patch tokens a block may keep.
        step: Counts are multiples of this, and `patches` itself; 1 allows all integers.
        max_gmacs: Hard upper bound on the cost; None for none.
        min_gmacs: Hard lower bound on the cost.
        limits: Further hard bounds: latency, parameters, memory.

    Raises:
        ValueError: A size is impossible, or no schedule of any width is within the bounds.
    """

    def __init__(
        self,
        depth: int,
        patches: int,
        widths: Sequence[int],
        cost: Cost,
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
        self.depth = depth
        self.patches = patches
        self.cost = cost
        self.max_gmacs = math.inf if max_gmacs is None else float(max_gmacs)
        self.min_gmacs = float(min_gmacs)
        self.limits = tuple(limits)
        grid = [count for count in range(step, patches, step) if count >= min_tokens]
        self.levels: NDArray[np.int64] = np.array([*grid, patches], dtype=np.int64)
        ranges = {width: self._cost_range(width) for width in sorted(set(widths))}
        feasible = {
            width: (max(low, self.min_gmacs), min(high, self.max_gmacs))
            for width, (low, high) in ranges.items()
            if low <= self.max_gmacs and high >= self.min_gmacs
        }
        if not feasible:
            width, (low, high) = min(ranges.items(), key=lambda item: item[1][0])
            raise ValueError(
                f"no schedule costs {self.min_gmacs:g} to {self.max_gmacs:g} GMACs: width {width} "
                f"costs {low:.4g} at {self.levels[0]} tokens per block and {high:.4g} when dense"
            )
        self.cost_ranges = self._within_limits(feasible)
        self.widths = tuple(self.cost_ranges)

    # ------------------------------------------------------------------ facts

    def dense(self) -> Schedule:
        """The schedule that keeps every token."""
        return Schedule((self.patches,) * self.depth)

    def smallest(self) -> Schedule:
        """The schedule that keeps the fewest tokens everywhere."""
        return Schedule((int(self.levels[0]),) * self.depth)

    @property
    def num_schedules(self) -> int:
        """How many monotone schedules the grid has, before the bounds on the cost."""
        return math.comb(len(self.levels) + self.depth - 1, self.depth)

    def candidate(self, width: int, schedule: Sequence[int]) -> Candidate:
        """A candidate with its cost.

        Raises:
            ValueError: The schedule is not of this space, or the cost is out of bounds.
        """
        candidate = self._candidate(width, np.asarray(schedule, dtype=np.int64))
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
            candidate.width in self.widths
            and len(counts) == self.depth
            and bool(np.isin(counts, self.levels).all())
            and self.min_gmacs <= candidate.gmacs <= self.max_gmacs
            and all(limit.allows(candidate.width, counts) for limit in self.limits)
        )

    def describe(self) -> str:
        """One line for people."""
        bounds = ""
        if self.min_gmacs > 0 or self.max_gmacs < math.inf:
            bounds = f", {self.min_gmacs:g} to {self.max_gmacs:g} GMACs"
        bounds += "".join(f", {limit.name} up to {limit.maximum:g}" for limit in self.limits)
        return (
            f"widths {', '.join(map(str, self.widths))}; {self.depth} blocks of "
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

    # --------------------------------------------------------------- sampling

    def sample(
        self, rng: np.random.Generator, count: int = 1, *, width: int | None = None
    ) -> list[Candidate]:
        """Random candidates spread evenly over the cost range.

        Uniform draws of monotone sequences bunch in the middle of the range. So each candidate
        gets a target cost first, one from each of `count` equal slices of the range, then a width
        that can reach it, then a random curve over the layers that is scaled until its cost just
        stays under the target.

        Args:
            rng: Source of randomness.
            count: How many; duplicates are possible in small spaces.
            width: Only this width.

        Raises:
            ValueError: `width` is not in the space, or the bounds are too tight for its grid.
        """
        ranges = self.cost_ranges
        if width is not None:
            if width not in ranges:
                raise ValueError(f"width {width} is not in the space: {self.describe()}")
            ranges = {width: ranges[width]}
        low = min(bounds[0] for bounds in ranges.values())
        high = max(bounds[1] for bounds in ranges.values())
        targets = low + (high - low) * (rng.permutation(count) + rng.random(count)) / max(count, 1)
        found = []
        for target in targets:
            able = [w for w, bounds in ranges.items() if bounds[0] <= target <= bounds[1]]
            # Widths' ranges may leave a gap between them: then the nearest one serves.
            chosen = int(rng.choice(able)) if able else self._nearest_width(float(target), ranges)
            found.append(self._sample_at(rng, chosen, float(target)))
        return found

    def _sample_at(self, rng: np.random.Generator, width: int, target: float) -> Candidate:
        """A random curve over the layers, scaled to the dearest schedule within `target`."""
        floor = self.cost_ranges[width][0]
        for attempt in range(_ATTEMPTS):
            # A small concentration gives a few abrupt drops, a large one a smooth decline.
            concentration = float(np.exp(rng.uniform(np.log(0.15), np.log(3.0))))
            drops = np.cumsum(rng.dirichlet(np.full(self.depth, concentration)))
            # The floor lets even the first block come down to the lowest level.
            candidate = self._scaled(np.maximum(drops, _LEAST_DROP), width, target)
            if self.contains(candidate):
                return candidate
            if self.limits and attempt >= _ATTEMPTS // 8:
                # Another bound than the cost binds up here: come down to where it does not.
                target = floor + 0.9 * (target - floor)
        raise ValueError(
            f"found no schedule of width {width} within {self.min_gmacs:g} to "
            f"{self.max_gmacs:g} GMACs: widen the bounds or use a finer step than the present one"
        )

    def _scaled(self, drops: NDArray[np.float64], width: int, target: float) -> Candidate:
        """Bisection on how steep the curve is, on a log axis, from dense to the lowest level."""
        gentle = math.log(0.1 / self.patches)
        steep = math.log(math.log(2 * self.patches) / _LEAST_DROP)
        best = self._candidate(width, self._curve(drops, steep))
        for _ in range(_BISECTIONS):
            middle = (gentle + steep) / 2
            candidate = self._candidate(width, self._curve(drops, middle))
            if candidate.gmacs <= target:
                best, steep = candidate, middle
            else:
                gentle = middle
        return best

    def _curve(self, drops: NDArray[np.float64], log_steepness: float) -> NDArray[np.int64]:
        return self._snap(self.patches * np.exp(-math.exp(log_steepness) * drops))

    # --------------------------------------------------------------- variation

    def mutate(
        self,
        rng: np.random.Generator,
        parent: Candidate,
        *,
        num_layers: int = 1,
        width_rate: float = 0.1,
    ) -> Candidate:
        """A neighbour of `parent`: some layers moved within the counts of *their* neighbours.

        Args:
            rng: Source of randomness.
            parent: A candidate of this space.
            num_layers: How many moves, one layer each.
            width_rate: Probability that the width changes too.

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
            child = self._candidate(width, counts)
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

    def crossover(self, rng: np.random.Generator, first: Candidate, second: Candidate) -> Candidate:
        """The elementwise mean of two schedules, with the width of one of the parents.

        A mean of non-increasing sequences is non-increasing, and so is its rounding to the grid.

        Returns:
            A candidate within the bounds; the cheaper parent where the mean is out of them.
        """
        mean = (np.asarray(first.schedule) + np.asarray(second.schedule)) / 2
        width = first.width if rng.random() < 0.5 else second.width
        child = self._candidate(width, self._snap(mean))
        return child if self.contains(child) else min(first, second, key=lambda c: c.gmacs)

    # ----------------------------------------------------------------- helpers

    def _snap(self, counts: NDArray[np.float64]) -> NDArray[np.int64]:
        """Nearest levels; a half goes up. Monotone, so it keeps an order that is there."""
        boundaries = (self.levels[1:] + self.levels[:-1]) / 2
        return self.levels[np.searchsorted(boundaries, counts, side="right")]

    def _candidate(self, width: int, counts: NDArray[np.int64]) -> Candidate:
        schedule = Schedule(counts.tolist())
        return Candidate(width, schedule, float(self.cost(width, schedule)))

    def _cost_range(self, width: int) -> tuple[float, float]:
        return (
            float(self.cost(width, self.smallest())),
            float(self.cost(width, self.dense())),
        )

    def _within_limits(
        self, ranges: dict[int, tuple[float, float]]
    ) -> dict[int, tuple[float, float]]:
        """Leaves out widths of which even the smallest schedule breaks a limit."""
        smallest = self.smallest()
        kept = {
            width: bounds
            for width, bounds in ranges.items()
            if all(limit.allows(width, smallest) for limit in self.limits)
        }
        if not kept:
            width = min(ranges)
            broken = next(limit for limit in self.limits if not limit.allows(width, smallest))
            raise ValueError(
                f"no schedule keeps {broken.name} within {broken.maximum:g}: width {width} has "
                f"{broken.measure(width, smallest):.4g} at {self.levels[0]} tokens per block"
            )
        return kept

    @staticmethod
    def _nearest_width(target: float, ranges: dict[int, tuple[float, float]]) -> int:
        return min(ranges, key=lambda w: max(ranges[w][0] - target, target - ranges[w][1]))
