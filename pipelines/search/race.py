"""Scoring schedules on minival by racing: who is clearly dominated stops after few images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipelines.search.scorer import ImageScores
from tune_spaces.candidate import Untrained
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
Floats = NDArray[np.float64]


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

    def score(self, block: Sequence[Candidate], screened: Sequence[Untrained]) -> list[Untrained]:
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
        usual = self._usual(block, seen, rivals)
        return [
            self._row(candidate, scores, usual[candidate.width])
            for candidate, scores in zip(block, seen, strict=True)
        ]

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

    def _usual(
        self,
        block: Sequence[Candidate],
        seen: Sequence[ImageScores],
        rivals: Sequence[Candidate],
    ) -> dict[int, tuple[Floats, Floats]]:
        """By width, each image's loss and whether it is right, in the mean of who saw them all."""
        found: dict[int, tuple[Floats, Floats]] = {}
        for width in {candidate.width for candidate in block}:
            complete = [self._veterans[r.key] for r in rivals if r.width == width] + [
                scores
                for other, scores in zip(block, seen, strict=True)
                if other.width == width and len(scores[0]) == self._images
            ]
            losses, right = zip(*complete, strict=True)
            found[width] = (
                np.asarray(losses, np.float64).mean(0),
                np.asarray(right, np.float64).mean(0),
            )
        return found

    def _row(
        self, candidate: Candidate, scores: ImageScores, usual: tuple[Floats, Floats]
    ) -> Untrained:
        losses, right = scores
        loss, top1 = float(losses.mean(dtype=np.float64)), float(right.mean())
        images = None
        if len(losses) < self._images:
            images = len(losses)
            # As much harder or easier as these images were for those who saw all of them.
            loss += float(usual[0].mean() - usual[0][:images].mean())
            top1 += float(usual[1].mean() - usual[1][:images].mean())
            loss, top1 = max(0.0, loss), min(1.0, max(0.0, top1))
        return Untrained(candidate, top1, loss, images)

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


def images_seen(screened: Sequence[Untrained], images: int) -> float:
    """Share of image evaluations that were made, of those that scoring all on all would take."""
    if not screened:
        return 1.0
    return sum(row.images or images for row in screened) / (images * len(screened))


_NOTHING: ImageScores = (np.zeros(0, np.float32), np.zeros(0, np.bool_))


def _joined(first: ImageScores, second: ImageScores) -> ImageScores:
    losses: NDArray[np.float32] = np.concatenate([first[0], second[0]])
    right: NDArray[np.bool_] = np.concatenate([first[1], second[1]])
    return losses, right


def _fronts(screened: Sequence[Untrained]) -> list[Candidate]:
    """Of each width, those scored on all images that nothing cheaper or as cheap beats."""
    found: list[Candidate] = []
    for width in sorted({row.candidate.width for row in screened}):
        own = [row for row in screened if row.candidate.width == width and row.whole]
        ranks = front_ranks([(row.candidate.gmacs, -row.loss) for row in own])
        found += [row.candidate for row, rank in zip(own, ranks, strict=True) if rank == 0]
    return found
