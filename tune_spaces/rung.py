"""A rung that carries along what `HalvingRule` asks of it, so that a decision stays quick.

`HalvingRule.judge` looks at a whole rung each time, which at a hundred thousand trials takes
longer than a report may. Here what it would find is kept up to date: a trial that leaves the
front as it is, as nearly all do, costs a search in a sorted list (with several costs, one look
along the rung), and one that lies within the noise of the front a look at the others that do.
The verdicts are the same to the last bit.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from tune_spaces.halving import Comparison, Entry, HalvingRule, Verdict
from tune_spaces.pareto import spread

_FEW = 64


class Rung(Mapping[str, Entry]):
    """The entries of all trials that reached a rung, by trial, in the order they came.

    Args:
        rule: what they are judged by. Rungs of one quality are kept up to date; others are
            looked at whole, by the rule itself.
    """

    def __init__(self, rule: HalvingRule) -> None:
        self._rule = rule
        self._entries: dict[str, Entry] = {}
        self._followed: _Followed | None = None
        self._num_kept = 0

    def __getitem__(self, trial_id: str) -> Entry:
        return self._entries[trial_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_kept(self) -> int:
        """Trials that went on."""
        return self._num_kept

    def add(self, trial_id: str, entry: Entry) -> None:
        """Records a trial with what was decided about it before; again, if it is known."""
        if trial_id in self._entries:
            entries = self._entries | {trial_id: entry}
            self._entries, self._followed, self._num_kept = {}, None, 0
            for name, each in entries.items():
                self.add(name, each)
            return
        self._record(trial_id, entry)
        self._num_kept += entry.kept

    def judge(self, trial_id: str, entry: Entry) -> Verdict:
        """Decides about a trial that has come to the rung, and records it with that."""
        followed = self._record(trial_id, entry)
        if not followed:
            verdict = self._rule.judge(trial_id, self._entries)
        elif followed.num_trials <= self._rule.min_peers:
            verdict = self._rule.too_few(followed.num_trials)
        else:
            verdict = self._rule.decide(followed.compare(self._rule.min_spread))
        self._entries[trial_id] = Entry(entry.costs, entry.qualities, verdict.kept)
        self._num_kept += verdict.kept
        if followed:
            followed.set_last_kept(verdict.kept)
        return verdict

    def _record(self, trial_id: str, entry: Entry) -> _Followed | None:
        self._entries[trial_id] = entry
        if entry.diverged or not entry.costs or len(entry.qualities) != 1:
            return None
        if self._followed is None:
            self._followed = _Followed(len(entry.costs), self._rule.noise[0])
        self._followed.add(trial_id, entry)
        return self._followed


class _Rows:
    """An array that rows are appended to."""

    def __init__(self, rows: NDArray[np.float64]) -> None:
        self._array, self._count = rows, len(rows)

    def append(self, row: NDArray[np.float64] | float) -> None:
        if self._count == len(self._array):
            longer = np.zeros((max(64, 2 * self._count), *self._array.shape[1:]))
            longer[: self._count] = self._array
            self._array = longer
        self._array[self._count] = row
        self._count += 1

    @property
    def rows(self) -> NDArray[np.float64]:
        return self._array[: self._count]


class _Followed:
    """The sound trials of a rung of one quality, and how each compares with its front.

    A trial's height is the best quality of any trial that costs no more. Those that lack nothing
    beyond the noise are called tied. Trials are numbered as they came.
    """

    def __init__(self, num_costs: int, noise: float) -> None:
        self._noise = noise
        self._names: list[str] = []
        self._points = _Rows(np.zeros((0, num_costs + 1)))  # costs, quality
        self._kept = _Rows(np.zeros(0))
        self._beyond = _Rows(np.zeros(0))  # what each lacks beyond the noise
        self._beyond_sorted: list[float] = []  # without the tied
        # Of one cost, the front is a staircase: from cost `_steps[i]` on its height is
        # `_stairs[i]`. Of several it has no order, and each trial's height is kept.
        self._steps: list[float] | None = [] if num_costs == 1 else None
        self._stairs: list[float] = []
        self._heights = _Rows(np.zeros(0))
        self._extremes = np.array([[np.inf], [-np.inf]]).repeat(num_costs + 1, axis=1)
        self._tied: list[int] = []
        self._tied_box = self._extremes
        self._tied_scaled = _Rows(np.zeros((0, num_costs + 1)))
        self._tied_alone = _Rows(np.zeros(0))

    @property
    def num_trials(self) -> int:
        return len(self._names)

    def add(self, name: str, entry: Entry) -> None:
        point = np.array([*entry.costs, entry.qualities[0]])
        self._extremes = _widened(self._extremes, point)
        self._measure_again(self._raise_front(point), float(point[-1]))
        height = self._height(point)
        beyond = max(height - entry.qualities[0] - self._noise, 0.0)
        self._names.append(name)
        self._points.append(point)
        self._kept.append(entry.kept)
        self._heights.append(height)
        self._beyond.append(beyond)
        if beyond > 0:
            insort(self._beyond_sorted, beyond)
        else:
            self._tie(len(self._names) - 1, point)

    def set_last_kept(self, kept: bool) -> None:
        self._kept.rows[-1] = kept

    def compare(self, min_spread: float) -> Comparison:
        """The trial added last against all."""
        lack = float(self._heights.rows[-1] - self._points.rows[-1, -1])
        beyond = float(self._beyond.rows[-1])
        if beyond > 0:
            rank = len(self._tied) + self._rank_below(beyond)
            return Comparison(self.num_trials, lack, True, rank, lambda: None)
        alone = self._tied_alone.rows
        rank = int((alone > alone[-1]).sum())
        return Comparison(self.num_trials, lack, False, rank, lambda: self._twin(min_spread))

    def _height(self, point: NDArray[np.float64]) -> float:
        """Of a point that the front has been raised to."""
        if self._steps is not None:
            at = bisect_left(self._steps, point[0])
            if at == len(self._steps) or self._steps[at] != point[0]:
                at -= 1
            return self._stairs[at]
        rows = self._points.rows
        affordable = (rows[:, :-1] <= point[:-1]).all(axis=1)
        return float(rows[affordable, -1].max(initial=point[-1]))

    def _raise_front(self, point: NDArray[np.float64]) -> NDArray[np.bool_] | None:
        """Raises the front to a point; the trials that are now lower below it than they were."""
        rows, (*costs, quality) = self._points.rows, point.tolist()
        if self._steps is None:
            under = (rows[:, :-1] >= costs).all(axis=1) & (self._heights.rows < quality)
            return under if under.any() else None
        cost, at = costs[0], bisect_left(self._steps, costs[0])
        here = at < len(self._steps) and self._steps[at] == cost
        below = self._stairs[at] if here else self._stairs[at - 1] if at else -np.inf
        if quality <= below:
            return None
        end = at
        while end < len(self._steps) and self._stairs[end] <= quality:
            end += 1
        self._steps[at:end], self._stairs[at:end] = [cost], [quality]
        under = rows[:, 0] >= cost
        if at + 1 < len(self._steps):
            under &= rows[:, 0] < self._steps[at + 1]
        return under

    def _measure_again(self, under: NDArray[np.bool_] | None, height: float) -> None:
        """What trials lack, now that the front above them has risen to a height."""
        if under is None:
            return
        number = np.flatnonzero(under)
        qualities = self._points.rows[number, -1]
        self._heights.rows[number] = height
        before = self._beyond.rows[number]
        after = np.maximum(height - qualities - self._noise, 0.0)
        self._beyond.rows[number] = after
        changed = np.flatnonzero(before != after)
        if len(changed) < _FEW:
            for old, new in zip(before[changed].tolist(), after[changed].tolist(), strict=True):
                if old > 0:
                    del self._beyond_sorted[bisect_left(self._beyond_sorted, old)]
                insort(self._beyond_sorted, new)
        else:
            beyond = self._beyond.rows
            self._beyond_sorted = np.sort(beyond[beyond > 0]).tolist()
        if (before[changed] == 0).any():
            self._tied = np.flatnonzero(self._beyond.rows == 0).tolist()
            self._scale_tied()

    def _scale_tied(self) -> None:
        points = self._points.rows[self._tied]
        self._tied_box = np.array(
            [points.min(axis=0, initial=np.inf), points.max(axis=0, initial=-np.inf)]
        )
        self._tied_scaled = _Rows(_scaled(points, self._tied_box))
        self._tied_alone = _Rows(spread(points) if len(points) else np.zeros(0))

    def _tie(self, number: int, point: NDArray[np.float64]) -> None:
        """Adds one that lacks nothing beyond the noise."""
        self._tied.append(number)
        if (point < self._tied_box[0]).any() or (point > self._tied_box[1]).any():
            self._scale_tied()
            return
        mine = _scaled(point, self._tied_box)
        distances = np.linalg.norm(self._tied_scaled.rows - mine, axis=1)
        alone = self._tied_alone.rows
        np.minimum(alone, distances, out=alone)
        self._tied_alone.append(distances.min(initial=np.inf))
        self._tied_scaled.append(mine)

    def _rank_below(self, beyond: float) -> int:
        """Of the trial added last, among those that are not tied."""
        rank = bisect_left(self._beyond_sorted, beyond)
        if rank + 1 < len(self._beyond_sorted) and self._beyond_sorted[rank + 1] == beyond:
            # Others lack exactly as much: the more alone come first.
            alone = spread(self._points.rows[self._beyond.rows == beyond])
            rank += int((alone > alone[-1]).sum())
        return rank

    def _twin(self, min_spread: float) -> str | None:
        """The nearest kept of the tied that makes the trial added last superfluous."""
        mine, tied = self._points.rows[-1], np.array(self._tied[:-1], dtype=np.int64)
        points = self._points.rows[tied]
        extent = self._extremes[1] - self._extremes[0]
        distances = np.linalg.norm((points - mine) / np.where(extent > 0, extent, 1.0), axis=1)
        distances[(self._kept.rows[tied] == 0) | (points[:, -1] < mine[-1])] = np.inf
        if not len(tied):
            return None
        nearest = int(np.argmin(distances))
        return self._names[tied[nearest]] if distances[nearest] < min_spread else None


def _widened(box: NDArray[np.float64], point: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([np.minimum(box[0], point), np.maximum(box[1], point)])


def _scaled(points: NDArray[np.float64], box: NDArray[np.float64]) -> NDArray[np.float64]:
    """`points` in 0..1 of the box, as `spread` scales them."""
    extent = box[1] - box[0]
    scaled: NDArray[np.float64] = (points - box[0]) / np.where(extent > 0, extent, 1.0)
    return scaled
