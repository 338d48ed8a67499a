"""Scoring schedules on minival by racing: who is clearly dominated stops after few images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipelines.search.scorer import ImageScores
from pipelines.search.state import ScreenedSchedule
from tokenpool import Schedule
from tune_spaces.pareto import front_ranks
from tune_spaces.racing import beaten, looks
from tune_spaces.space import Candidate

# Candidates, first image, one after the last → what each made of these images, in that order.
Evaluate = Callable[[Sequence[Candidate], int, int], Sequence[ImageScores]]

BLOCK = 64
"""Candidates that race together: what a search that is killed has to score again, at most."""
_ERROR = 0.05
"""Probability that a race drops anybody who is not dominated, at most."""

_Key = tuple[object, ...]


class Racer:
    """Scores blocks of candidates that race with each other and with the front known before.

    What a block comes to follows from the block and from what was screened before it. Widths race
    apart: one may look worse without training and be better with it.

    Args:
        evaluate: runs candidates on a part of the images, which are in random order.
        images: how many there are.
        racing: whether anybody is dropped; otherwise all are scored on all images.
        tolerance: nats by which a schedule has to be better than one of the front that costs no
            more, or it may be dropped.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        images: int,
        *,
        racing: bool = True,
        tolerance: float = 0.0,
    ) -> None:
        self._evaluate, self._images, self._tolerance = evaluate, images, tolerance
        self._looks = looks(images) if racing else [images]
        self._veterans: dict[_Key, ImageScores] = {}

    def score(
        self, block: Sequence[Candidate], screened: Sequence[ScreenedSchedule]
    ) -> list[ScreenedSchedule]:
        """What each of a block comes to.

        Args:
            block: candidates that were not scored yet.
            screened: all that were, on the same images and weights.
        """
        rivals = _fronts(screened)
        self._recall(rivals)
        seen: list[ImageScores] = [_NOTHING] * len(block)
        alive = list(range(len(block)))
        for before, look in pairwise([0, *self._looks]):
            found = self._evaluate([block[i] for i in alive], before, look)
            for i, scores in zip(alive, found, strict=True):
                seen[i] = _joined(seen[i], scores)
            if look < self._images:
                out = self._dropped(block, seen, alive, rivals, look)
                alive = [i for i in alive if i not in out]
        for i in alive:
            self._veterans[block[i].key] = seen[i]
        return [self._row(block, seen, i, rivals) for i in range(len(block))]

    def _dropped(
        self,
        block: Sequence[Candidate],
        seen: Sequence[ImageScores],
        alive: Sequence[int],
        rivals: Sequence[Candidate],
        look: int,
    ) -> set[int]:
        found: set[int] = set()
        for width in sorted({candidate.width for candidate in block}):
            mine = [i for i in alive if block[i].width == width]
            known = [rival for rival in rivals if rival.width == width]
            if not mine or len(mine) + len(known) < 2:
                continue
            out = beaten(
                np.array([block[i].gmacs for i in mine]),
                np.array([seen[i][0] for i in mine]),
                np.array([rival.gmacs for rival in known]),
                np.array([self._veterans[rival.key][0][:look] for rival in known]).reshape(
                    len(known), look
                ),
                images=self._images,
                error=self._error(block, rivals),
                tolerance=self._tolerance,
            )
            found |= {i for i, beat in zip(mine, out, strict=True) if beat}
        return found

    def _error(self, block: Sequence[Candidate], rivals: Sequence[Candidate]) -> float:
        """Of one comparison, so that all of a race together keep to `_ERROR`."""
        comparisons = len(block) * (len(block) + len(rivals)) * max(1, len(self._looks) - 1)
        return _ERROR / comparisons

    def _row(
        self,
        block: Sequence[Candidate],
        seen: Sequence[ImageScores],
        index: int,
        rivals: Sequence[Candidate],
    ) -> ScreenedSchedule:
        candidate, (losses, right) = block[index], seen[index]
        loss, top1 = float(losses.mean(dtype=np.float64)), float(right.mean())
        images = None
        if len(losses) < self._images:
            images = len(losses)
            complete = [self._veterans[r.key] for r in rivals if r.width == candidate.width]
            complete += [
                scores
                for other, scores in zip(block, seen, strict=True)
                if other.width == candidate.width and len(scores[0]) == self._images
            ]
            # As much harder or easier as these images were for those who saw all of them.
            loss += np.mean([s[0].mean() - s[0][:images].mean() for s in complete])
            top1 += np.mean([s[1].mean() - s[1][:images].mean() for s in complete])
            loss, top1 = max(0.0, float(loss)), min(1.0, max(0.0, float(top1)))
        return ScreenedSchedule(
            candidate.width,
            tuple(candidate.schedule),
            candidate.gmacs,
            top1,
            loss,
            candidate.method,
            images,
        )

    def _recall(self, rivals: Sequence[Candidate]) -> None:
        """Keeps what is known of the rivals alone; of a search that was resumed, finds it anew."""
        missing = [rival for rival in rivals if rival.key not in self._veterans]
        found = [_NOTHING] * len(missing)
        # The same parts as in a race: sums in other batches differ in their last digits.
        for before, look in pairwise([0, *self._looks]):
            parts = self._evaluate(missing, before, look) if missing else []
            found = [_joined(a, b) for a, b in zip(found, parts, strict=True)] if parts else found
        fresh = {rival.key: scores for rival, scores in zip(missing, found, strict=True)}
        self._veterans = {
            rival.key: fresh.get(rival.key) or self._veterans[rival.key] for rival in rivals
        }


def images_seen(screened: Sequence[ScreenedSchedule], images: int) -> float:
    """Share of image evaluations that were made, of those that scoring all on all would take."""
    if not screened:
        return 1.0
    return sum(row.images or images for row in screened) / (images * len(screened))


_NOTHING: ImageScores = (np.zeros(0, np.float32), np.zeros(0, np.bool_))


def _joined(first: ImageScores, second: ImageScores) -> ImageScores:
    losses: NDArray[np.float32] = np.concatenate([first[0], second[0]])
    right: NDArray[np.bool_] = np.concatenate([first[1], second[1]])
    return losses, right


def _fronts(screened: Sequence[ScreenedSchedule]) -> list[Candidate]:
    """Of each width, those scored on all images that nothing cheaper or as cheap beats."""
    found: list[Candidate] = []
    for width in sorted({row.width for row in screened}):
        own = [row for row in screened if row.width == width and row.images is None]
        ranks = front_ranks([(row.gmacs, -row.loss) for row in own])
        found += [
            Candidate(row.width, Schedule(row.schedule), row.gmacs, row.method)
            for row, rank in zip(own, ranks, strict=True)
            if rank == 0
        ]
    return found
