"""The best schedule within a bound on the cost, of those that some hundred scores can find.

Every schedule tried is as dear as the bound allows, so that only its shape is searched: the starts
are shapes of one parameter and planned ones; then each generation takes the best apart at some
layer, leaves what is before it, and gives the layers after it other shares of what they drop.
Schedules that begin alike are cheap to score together (`pipelines/search/prefixes.py`).

Damage is what is told of a schedule, the lower the better: its mean divergence from the dense
model. All of a generation are seen on few images, the best third of them on four times as many,
and so on (successive halving; Jamieson and Talwalkar, AISTATS 2016).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenpool import Schedule
from tune_spaces.shapes import shapes
from tune_spaces.space import Candidate, ScheduleSpace
from tune_spaces.surrogate import ScheduleSurrogate

__all__ = ["BoundedSearch", "Request", "Standing", "looks"]

_POWERS = (-1.0, 0.0, -0.5, -1.5, -0.7, -2.0, -0.25, 0.5, 1.0)
_GENERATIONS = 9
_LEAST_GENERATION = 4
# Of the schedules, how many are the best one's shape at less cost, and which costs these are.
_CHEAPER, _CHEAPER_FROM = (0.95, 0.9, 0.8, 0.7), 40
_FIRST_LOOK, _GROWTH, _KEPT = 64, 4, 1 / 3
_PARENTS = (8, 3)  # in the first generation and in the last
_STEPS = (0.7, 0.15)  # of the logarithm of what a layer drops, likewise
_RECOMBINED = 0.3
_OVERSAMPLE, _RELIABLE, _LEAST_FITTED = 4, 0.5, 30
_ATTEMPTS, _BISECTIONS = 40, 24
_LEAST_RATE = 0.01  # a layer that drops nothing can come to drop something

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Request:
    """Schedules that are to be scored on images `start` to `stop` of a random order."""

    schedules: tuple[tuple[int, ...], ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Standing:
    """What is known of a schedule.

    Attributes:
        candidate: with its cost.
        damage: on all images, or where fewer were seen what all would have said.
        images: how many were seen.
    """

    candidate: Candidate
    damage: float
    images: int


def looks(images: int) -> list[int]:
    """After how many images to look: a quarter as many before each, as long as that is a sample."""
    found = [images]
    while found[0] // _GROWTH >= _FIRST_LOOK:
        found.insert(0, found[0] // _GROWTH)
    return found


class BoundedSearch:
    """Asks for scores, is told them, asks again. The same answers make the same questions.

    Args:
        space: of one width and method, with the bound as its `max_gmacs`.
        planned: candidates that are expected to be good, the best first.
        schedules: how many are looked at in all.
        images: how many there are to score on.
        seed: of what is drawn.
    """

    def __init__(
        self,
        space: ScheduleSpace,
        planned: Sequence[Candidate],
        *,
        schedules: int,
        images: int,
        seed: int,
    ) -> None:
        self._space, self._wanted, self._seed = space, schedules, seed
        self._looks = looks(images)
        self._width, self._method = space.widths[0], space.methods[0]
        self._target = min(space.max_gmacs, space.cost(self._width, space.dense()))
        # By schedule, its mean damage on the images before each look it has seen.
        self._seen: dict[tuple[int, ...], list[float]] = {}
        self._cheaper: tuple[float, ...] = _CHEAPER if schedules >= _CHEAPER_FROM else ()
        self._searched = schedules - len(self._cheaper)
        self._planned = list(planned)
        self._alive: list[tuple[int, ...]] = []
        self._look = 0
        self._ended = False

    def ask(self) -> Request | None:
        """What to score next; None at the end."""
        if not self._alive:
            self._alive, self._look = self._next(), 0
            if not self._alive:
                return None
        start = self._looks[self._look - 1] if self._look else 0
        return Request(tuple(self._alive), start, self._looks[self._look])

    def tell(self, damages: Sequence[float]) -> None:
        """The answer: of each schedule asked about, the mean damage on the images asked for."""
        start = self._looks[self._look - 1] if self._look else 0
        stop = self._looks[self._look]
        for schedule, damage in zip(self._alive, damages, strict=True):
            known = self._seen.setdefault(schedule, [])
            before = known[-1] if known else 0.0
            known.append((start * before + (stop - start) * damage) / stop)
        self._look += 1
        self._alive = [] if self._look == len(self._looks) else self._kept()

    def standings(self) -> list[Standing]:
        """All that were looked at, the best first."""
        found = [
            Standing(self._candidate(schedule), self._damage(means), self._looks[len(means) - 1])
            for schedule, means in self._seen.items()
        ]
        return sorted(found, key=lambda entry: (entry.damage, tuple(entry.candidate.schedule)))

    @property
    def best(self) -> Standing | None:
        """The one of least damage that was seen on all images; None as long as there is none."""
        whole = (entry for entry in self.standings() if entry.images == self._looks[-1])
        return next(whole, None)

    # ---------------------------------------------------------------- rounds

    def _kept(self) -> list[tuple[int, ...]]:
        """Of those that were just looked at, whom to look at longer."""
        if self._ended:
            return self._alive  # asked for by name: all are wanted
        ordered = sorted(self._alive, key=lambda schedule: self._seen[schedule][-1])
        kept = ordered[: max(1, round(_KEPT * len(ordered)))]
        rivals = [means for means in self._seen.values() if len(means) == len(self._looks)]
        if rivals:
            # On so few images the best one known is as lucky or not as everybody else.
            bar = min(rivals, key=lambda means: means[-1])[self._look - 1]
            kept = [
                s for s in kept if self._seen[s][-1] < _margin(self._looks[self._look - 1], bar)
            ]
        return kept

    def _next(self) -> list[tuple[int, ...]]:
        left = self._searched - len(self._seen)
        size = max(_LEAST_GENERATION, -(-self._searched // _GENERATIONS))
        if not self._seen:
            starts = self._starts()
            return starts[: max(_LEAST_GENERATION, min(self._searched // 2, 2 * size))]
        if left > 0 and not self._ended:
            born = self._born(min(size, left))
            if born:
                return born
        best = self.best
        if self._ended or best is None:
            return []
        self._ended = True
        fresh = [self._scaled(best.candidate.schedule, share) for share in self._cheaper]
        return [s for s in dict.fromkeys(fresh) if s is not None and s not in self._seen]

    def _starts(self) -> list[tuple[int, ...]]:
        """Shapes of one parameter and the plan's, in turn."""
        space = self._space

        def cost(schedule: Schedule) -> float:
            return space.cost(self._width, schedule)

        simple = shapes(space.depth, space.patches, cost, self._target, _POWERS)
        number = simple.pop("constant number", None)
        mine = list(simple.values())
        if number is not None:
            mine.insert(min(2, len(mine)), number)
        at_bound = [self._scaled(candidate.schedule, 1.0) for candidate in self._planned]
        planned = [schedule for schedule in at_bound if schedule is not None]
        found: list[tuple[int, ...]] = []
        for place in range(max(len(mine), len(planned))):
            found += [tuple(mine[place])] if place < len(mine) else []
            found += [planned[place]] if place < len(planned) else []
        if not found:  # the bound is below what these shapes can reach
            found = [tuple(c.schedule) for c in space.sample(self._rng(), _LEAST_GENERATION)]
        return list(dict.fromkeys(found))

    # -------------------------------------------------------------- offspring

    def _born(self, count: int) -> list[tuple[int, ...]]:
        """Children of the best; of many, those that are expected to be good."""
        rng = self._rng()
        share = min(1.0, len(self._seen) / self._searched)
        step = _between(_STEPS, share)
        ranked = [tuple(entry.candidate.schedule) for entry in self.standings()]
        parents = ranked[: max(1, round(_between(_PARENTS, share)))]
        surrogate = self._surrogate()
        wanted = count * _OVERSAMPLE if surrogate is not None else count
        children: dict[tuple[int, ...], None] = {}
        for _ in range(wanted * _ATTEMPTS):
            if len(children) == wanted:
                break
            parent, other = (parents[int(len(parents) * rng.random() ** 2)] for _ in range(2))
            child = self._child(rng, parent, other if rng.random() < _RECOMBINED else parent, step)
            if child is not None and child not in self._seen:
                children.setdefault(child)
        born = list(children)
        if surrogate is None or len(born) <= count:
            return born[:count]
        expected = surrogate.predict([0] * len(born), born)
        promising = [born[i] for i in np.argsort(-expected, kind="stable")]
        # Half of them as they came: what is expected is only as good as what was seen.
        chosen = promising[: -(-count // 2)]
        return [*chosen, *[child for child in born if child not in chosen][: count - len(chosen)]]

    def _child(
        self, rng: np.random.Generator, parent: tuple[int, ...], other: tuple[int, ...], step: float
    ) -> tuple[int, ...] | None:
        """The parent up to some layer; from there on other rates, at the bound again."""
        depth = self._space.depth
        first = int(rng.integers(0, max(1, depth - 1)))
        rates = (self._rates(parent)[first:] + self._rates(other)[first:]) / 2
        moved = np.zeros(len(rates))
        # Few layers or all of them: what one takes, scaling makes the others give.
        chosen = rng.permutation(len(rates))[: int(rng.choice([1, 2, len(rates)]))]
        moved[chosen] = rng.normal(size=len(chosen)) * step
        rates = np.maximum(rates, _LEAST_RATE * (moved > 0)) * np.exp(moved)
        return self._at_bound(parent[:first], rates, self._target)

    def _scaled(self, schedule: Sequence[int], share: float) -> tuple[int, ...] | None:
        """The same shape at a share of the bound."""
        return self._at_bound((), self._rates(tuple(schedule)), share * self._target)

    def _at_bound(
        self, head: tuple[int, ...], rates: Array, target: float
    ) -> tuple[int, ...] | None:
        """The dearest schedule within a target that begins so and drops in these proportions."""
        space, incoming = self._space, head[-1] if head else self._space.patches
        if not rates.any():
            return None
        falls = np.cumsum(rates)
        least = int(space.levels[0])
        low, high = -12.0, math.log(math.log(2 * space.patches) / max(float(falls[-1]), 1e-9) + 1e3)
        best = None
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            counts = np.round(incoming * np.exp(-math.exp(middle) * falls)).astype(int)
            tail = np.maximum(counts, min(least, incoming))
            schedule = (*head, *(int(k) for k in tail))
            candidate = self._candidate(schedule)
            if candidate.gmacs <= target:
                best, high = schedule, middle
            else:
                low = middle
        return best if best is not None and space.contains(self._candidate(best)) else None

    def _surrogate(self) -> ScheduleSurrogate | None:
        """Fitted to all that was seen, if it can be relied on to order them."""
        known = self.standings()
        if len(known) < _LEAST_FITTED:
            return None
        found = ScheduleSurrogate(
            self._space.patches,
            [0] * len(known),
            [list(entry.candidate.schedule) for entry in known],
            [-entry.damage for entry in known],
        )
        return found if found.reliability >= _RELIABLE else None

    # ---------------------------------------------------------------- helpers

    def _damage(self, means: Sequence[float]) -> float:
        """On all images; of who saw fewer, as much more as it was for those who saw all."""
        if len(means) == len(self._looks):
            return means[-1]
        place = len(means) - 1
        whole = [known for known in self._seen.values() if len(known) == len(self._looks)]
        first = sum(known[place] for known in whole)
        return means[-1] * (sum(known[-1] for known in whole) / first if first > 0 else 1.0)

    def _rates(self, schedule: tuple[int, ...]) -> Array:
        logs = np.log(np.array([self._space.patches, *schedule], dtype=np.float64))
        rates: Array = -np.diff(logs)
        return rates

    def _candidate(self, schedule: tuple[int, ...]) -> Candidate:
        kept = Schedule(schedule)
        cost = self._space.cost(self._width, kept, self._method)
        return Candidate(self._width, kept, cost, self._method)

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng([self._seed, len(self._seen)])


def _margin(images: int, damage: float) -> float:
    """What a rival may be seen to do worse than the best one and still be looked at longer."""
    return damage * (1 + 1 / math.sqrt(images))


def _between(ends: tuple[float, float], share: float) -> float:
    """From the first to the second on a log axis."""
    return float(ends[0] ** (1 - share) * ends[1] ** share)
