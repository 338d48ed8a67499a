"""Schedules judged on some images first, and only the best of them on more.

All are seen on few images, the best third of them on four times as many, and so on (successive
halving; Jamieson and Talwalkar, AISTATS 2016). For schedules of one cost, where nobody asks for the
others; where a whole front is wanted, they race (`racing.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from tune_spaces.candidate import Untrained
from tune_spaces.space import Candidate

__all__ = ["ImageHalving", "See", "looks_of"]

_FIRST_LOOK, _GROWTH, _KEPT = 64, 4, 1 / 3

See = Callable[[Sequence[Candidate], int, int], Sequence[float]]
"""Candidates, first image, one after the last → the mean damage of each on these images."""


def looks_of(images: int) -> list[int]:
    """After how many images to look: a quarter as many before each, as long as that is a sample."""
    found = [images]
    while found[0] // _GROWTH >= _FIRST_LOOK:
        found.insert(0, found[0] // _GROWTH)
    return found


class ImageHalving:
    """What schedules come to on a number of images, most of them seen on fewer.

    Args:
        images: how many images there are, in random order.
        see: gives the damage that schedules do on some of the images; less is better.
    """

    def __init__(self, images: int, see: See) -> None:
        self._looks, self._see = looks_of(images), see
        # By candidate, its mean damage on the images before each look it has seen.
        self._means: dict[tuple[object, ...], list[float]] = {}

    def judge(self, candidates: Sequence[Candidate], *, all_whole: bool = False) -> list[Untrained]:
        """A score for each candidate; of one not seen on all images, what these would have said.

        Args:
            candidates: candidates of one cost.
            all_whole: whether all of them are seen on all images.
        """
        alive = list(candidates)
        for start, stop in pairwise([0, *self._looks]):
            for candidate, damage in zip(alive, self._see(alive, start, stop), strict=True):
                known = self._means.setdefault(candidate.key, [])
                before = known[-1] if known else 0.0
                known.append((start * before + (stop - start) * damage) / stop)
            if stop < self._looks[-1] and not all_whole:
                alive = self._kept(alive)
        return [self._row(candidate) for candidate in candidates]

    def _kept(self, alive: Sequence[Candidate]) -> list[Candidate]:
        """The candidates to look at on more images."""
        ordered = sorted(alive, key=lambda candidate: self._means[candidate.key][-1])
        kept = ordered[: max(1, round(_KEPT * len(ordered)))]
        rivals = [means for means in self._means.values() if len(means) == len(self._looks)]
        if rivals:
            # On so few images the best one known is as lucky or not as everybody else.
            place = len(self._means[ordered[0].key]) - 1
            bar = min(rivals, key=lambda means: means[-1])[place]
            bar *= 1 + 1 / math.sqrt(self._looks[place])
            kept = [candidate for candidate in kept if self._means[candidate.key][-1] < bar]
        return kept

    def _row(self, candidate: Candidate) -> Untrained:
        means = self._means[candidate.key]
        whole = [known for known in self._means.values() if len(known) == len(self._looks)]
        if len(means) == len(self._looks) or not whole:
            return Untrained(candidate, 0.0, means[-1], self._seen_by(means))
        # As much more or less as it was for those who saw all.
        place = len(means) - 1
        first = sum(known[place] for known in whole)
        ratio = sum(known[-1] for known in whole) / first if first > 0 else 1.0
        return Untrained(candidate, 0.0, means[-1] * ratio, self._seen_by(means))

    def _seen_by(self, means: Sequence[float]) -> int | None:
        """How many images a candidate was seen on; None: on all."""
        return None if len(means) == len(self._looks) else self._looks[len(means) - 1]
