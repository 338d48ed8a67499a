"""Which of many candidates lies farthest from all that were taken, without asking all of them.

The candidates are put into small boxes, near ones together, once. Taking one changes only what is
nearer to it than to all taken before, and those are in a few boxes; each box remembers the
best it holds. So a choice looks at the boxes and not at the candidates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_DECIMALS = 12  # values closer than this are equal
_CHUNK = 1 << 22  # distances computed at a time

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class CoverageMap:
    """Candidates on a map, some taken.

    What a candidate would tell is its distance to the nearest taken one, divided by 1 + its rank.
    The one that tells most comes next; of equal ones the better, and of those the first.

    Args:
        places: `[n, c]`.
        quality: `[n]`, more is better; None where nothing is known of it.
        ranks: `[n]`, 0 or more.
    """

    def __init__(self, places: Floats, quality: Floats | None, ranks: Integers) -> None:
        size = max(16, int(np.sqrt(len(places))))
        # [boxes, size] of candidates; the last box is filled up with -1.
        boxes = _boxes(places, size)
        self._numbers = boxes
        self._box_of = np.empty(len(places), dtype=np.int64)
        for row, numbers in enumerate(boxes):
            self._box_of[numbers[numbers >= 0]] = row
        real = boxes >= 0
        self._places = places
        self._box_places = places[boxes]  # [boxes, size, c]; -1 repeats the last, never free
        spanned = np.where(real[:, :, None], self._box_places, np.nan)
        self._low, self._high = np.nanmin(spanned, axis=1), np.nanmax(spanned, axis=1)
        self._quality = None if quality is None else quality[boxes]
        self._divisor = 1.0 + ranks[boxes]
        self._free = real.copy()
        self._gaps = np.where(real, np.inf, 0.0)
        self._nearest = np.full(boxes.shape, -1)
        self._widest = self._gaps.max(axis=1)
        self._taken: list[int] = []
        self.num_free = len(places)
        # Before anything is taken, the best that is expected, else the dearest.
        order = places.sum(axis=1) if quality is None else quality
        self._first_order = order[boxes]
        self._best: tuple[Floats, Floats, Integers] = self._best_of(slice(None))

    def most_telling(self) -> int:
        """The candidate to be taken next; there is one."""
        if not self._taken:
            order = np.where(self._free, self._first_order, -np.inf)
            return int(self._numbers[order == order.max()].min())
        value, tie, number = self._best
        at = np.flatnonzero(value == value.max())
        at = at[tie[at] == tie[at].max()]
        return int(number[at].min())

    def take(self, candidate: int) -> None:
        """Marks a candidate as taken, now or before a restart."""
        row = self._box_of[candidate]
        mine = self._free[row] & (self._numbers[row] == candidate)
        self.num_free -= int(mine.sum())
        self._free[row, mine] = False
        self._taken.append(candidate)
        place = self._places[candidate]
        outside = np.maximum(np.maximum(self._low - place, place - self._high), 0.0)
        reached = np.linalg.norm(outside, axis=1) < self._widest
        reached[row] = True
        rows = np.flatnonzero(reached)
        distances = np.linalg.norm(self._box_places[rows] - place, axis=2)
        nearer = distances < self._gaps[rows]
        self._gaps[rows] = np.where(nearer, distances, self._gaps[rows])
        self._nearest[rows] = np.where(nearer, candidate, self._nearest[rows])
        self._look_again(rows)

    def forget(self, candidate: int) -> None:
        """What is around a candidate is unknown again; it does not become free itself."""
        self._taken.remove(candidate)
        near = self._nearest == candidate
        rows = np.flatnonzero(near.any(axis=1))
        places = self._box_places[near]
        taken = np.array(self._taken, dtype=np.int64)
        gaps, nearest = np.full(len(places), np.inf), np.full(len(places), -1)
        step = max(1, _CHUNK // max(1, len(taken)))
        for start in range(0, len(places) if len(taken) else 0, step):
            some = slice(start, start + step)
            distances = np.linalg.norm(
                places[some][:, None, :] - self._places[taken][None, :, :], axis=2
            )
            index = distances.argmin(axis=1)
            gaps[some] = distances[np.arange(len(index)), index]
            nearest[some] = taken[index]
        self._gaps[near], self._nearest[near] = gaps, nearest
        self._look_again(rows)

    def _look_again(self, rows: Integers) -> None:
        self._widest[rows] = self._gaps[rows].max(axis=1)
        for kept, found in zip(self._best, self._best_of(rows), strict=True):
            kept[rows] = found

    def _best_of(self, rows: Integers | slice) -> tuple[Floats, Floats, Integers]:
        """Of each box, the value, quality and number of the candidate that comes first."""
        numbers, free = self._numbers[rows], self._free[rows]
        value = np.where(free, np.round(self._gaps[rows] / self._divisor[rows], _DECIMALS), -np.inf)
        highest = value.max(axis=1)
        first = free & (value == highest[:, None])
        if self._quality is None:
            best = np.zeros(len(numbers))
        else:
            tie = np.where(first, self._quality[rows], -np.inf)
            best = tie.max(axis=1)
            first &= tie == best[:, None]
        number = np.where(first, numbers, np.iinfo(np.int64).max).min(axis=1)
        return highest, best, number


def _boxes(places: Floats, size: int) -> Integers:
    """Candidates in boxes of `size`, cut again and again across the longest side."""
    parts = [np.arange(len(places))]
    while len(parts[0]) > size:
        halves = []
        for part in parts:
            side = int(np.argmax(np.ptp(places[part], axis=0)))
            order = part[np.argsort(places[part, side], kind="stable")]
            halves += [order[: (len(order) + 1) // 2], order[(len(order) + 1) // 2 :]]
        parts = halves
    width = max(len(part) for part in parts)
    boxes = np.full((len(parts), width), -1, dtype=np.int64)
    for row, part in zip(boxes, parts, strict=True):
        row[: len(part)] = part
    return boxes
