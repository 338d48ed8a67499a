"""What a step of training should add to the front for its price, by what is known so far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.gaussian_process.kernels import Kernel

from tune_spaces.candidate import Candidate, Key, Untrained
from tune_spaces.expectation import TrainedQuality
from tune_spaces.pareto import added_volume
from tune_spaces.space import ScheduleSpace

__all__ = ["DenseModel", "Outlook", "Prices", "Trained"]

# How much of what a schedule lacks untrained is guessed to be left after training.
_LEFT = 0.5
# Share of what a model lacks at the rung that it gains by the end, before any got there, and how
# much that counts: as one whose top-1 lacks a tenth.
_RECOVERED, _RECOVERED_WEIGHT = 0.3, 0.01
# An image takes time for more than its MACs: for as much as a sixth of the dearest model's.
_OVERHEAD = 1 / 6
# Trainings the process is fitted to, at most: a fit takes time as the cube of their number.
_MOST_FITTED = 256


@dataclass(frozen=True)
class DenseModel:
    """A width's model without pooling, which everything starts from.

    Attributes:
        width: the embedding dimension of the model.
        gmacs: what an image costs.
        top1: the top-1 of the trained model on minival, a fraction.
        untrained: the top-1 of the weights that schedules are scored on, on the images they are
            scored on; the same as `top1` where these are the model's own and all of minival.
    """

    width: int
    gmacs: float
    top1: float
    untrained: float


@dataclass
class Trained:
    """A candidate in training.

    Attributes:
        candidate: the candidate that is trained.
        guess: the top-1 at the rung that was guessed before it began, a fraction.
        first: the top-1 at the rung, None before.
        last: the top-1 at the end, None before.
    """

    candidate: Candidate
    guess: float
    first: float | None = None
    last: float | None = None


@dataclass(frozen=True)
class Prices:
    """What training costs and where its results count.

    Attributes:
        first: the epochs to the rung, where a training may pause.
        last: the epochs to its end; the same as `first` where it never pauses.
        images: how many images an epoch has.
        measured: how many images top-1 is measured on after each step.
        floor: the top-1 below which nothing counts.
        start: what it takes to start a training's processes, from nothing or from its checkpoint,
            in forward passes of the dearest model.
        log_cost: whether half the cost counts as much at a tenth of the dense model's cost as at
            its whole; otherwise GMACs count alike everywhere.
    """

    first: int
    last: int
    images: int
    measured: int
    floor: float = 0.0
    start: float = 0.0
    log_cost: bool = False

    def of(self, epochs: int) -> float:
        """Forward passes of so many epochs and of measuring; a backward pass counts as two."""
        return 3.0 * epochs * self.images + self.measured


class Outlook:
    """Guesses from scores without training, corrected by what was trained.

    What a schedule comes to at the rung is guessed from its top-1 without training: half of what
    it lacks against its dense model is left. `TrainedQuality` corrects that.

    Args:
        space: the space that is searched.
        dense: the dense models.
        prices: what a step of training costs.
    """

    def __init__(self, space: ScheduleSpace, dense: Sequence[DenseModel], prices: Prices) -> None:
        self._space, self._prices = space, prices
        self._dense = {model.width: model for model in dense}
        self._dearest = max(model.gmacs for model in dense)
        self._cheapest = min(low for low, _ in space.cost_ranges.values())
        self._quality = 0, TrainedQuality(space.patches, [], [], [])
        self._scaled = self._quality  # the last one whose kernel's scales were fitted

    def guesses(self, rows: Sequence[Untrained]) -> dict[Key, float]:
        """Top-1 at the rung of everything scored, as guessed without any training."""
        found = {}
        for key, top1 in smoothed_top1(rows).items():
            dense = self._dense[key[0]]
            found[key] = dense.top1 - _LEFT * max(0.0, dense.untrained - top1)
        return found

    def expected(
        self,
        candidates: Sequence[Candidate],
        guesses: Sequence[float],
        trained: Sequence[Trained],
        optimism: float = 0.0,
    ) -> list[float]:
        """Top-1 at the rung of candidates, by guesses and by what others came to there.

        Args:
            candidates: the candidates.
            guesses: the top-1 guessed of each.
            trained: the trainings that came to the rung, in the order they did.
            optimism: how many standard deviations are added.
        """
        if self._quality[0] != len(trained):
            fit = _last_fit(len(trained))
            if self._scaled[0] != fit:
                self._scaled = fit, self._fitted(trained[:fit])
            self._quality = self._scaled
            if fit != len(trained):
                self._quality = len(trained), self._fitted(trained, self._scaled[1].kernel)
        return [float(v) for v in self._quality[1].predict(candidates, guesses, optimism)]

    def _fitted(self, trained: Sequence[Trained], kernel: Kernel | None = None) -> TrainedQuality:
        last = trained[-_MOST_FITTED:]
        return TrainedQuality(
            self._space.patches,
            [row.candidate for row in last],
            [row.guess for row in last],
            [row.first for row in last if row.first is not None],
            kernel,
        )

    def at_end(
        self, candidates: Sequence[Candidate], firsts: Sequence[float], trained: Iterable[Trained]
    ) -> list[float]:
        """Top-1 at the end of trainings that come to so much at the rung.

        The share of what each lacks there that it will gain is that of those who have ended, by
        least squares.

        Args:
            candidates: the candidates that are trained.
            firsts: the top-1 of each at the rung.
            trained: all trainings there are.
        """
        weight, product = _RECOVERED_WEIGHT, _RECOVERED * _RECOVERED_WEIGHT
        for other in trained:
            if other.first is not None and other.last is not None:
                lack = self._lack(other.candidate, other.first)
                weight += lack**2
                product += lack * (other.last - other.first)
        share = min(max(product / weight, 0.0), 1.0)
        return [
            first + share * self._lack(candidate, first)
            for candidate, first in zip(candidates, firsts, strict=True)
        ]

    def worth(
        self,
        candidates: Sequence[Candidate],
        expected: Sequence[float],
        known: Sequence[tuple[float, float]],
        epochs: int,
        margin: float,
        warm: Candidate | None = None,
    ) -> NDArray[np.float64]:
        """Hypervolume each should add if it comes to what is expected, for its price.

        Args:
            candidates: the candidates that may be trained.
            expected: the top-1 expected of each.
            known: the GMACs and top-1 of all there is.
            epochs: how many epochs the step has.
            margin: how far above the front a candidate must be to count.
            warm: the candidate whose processes are there, so that nothing has to be started.
        """
        costs = np.array([candidate.gmacs for candidate in candidates])
        added = added_volume(
            np.column_stack([self._axis(costs), expected]),
            [(self._axis(gmacs), top1 + margin) for gmacs, top1 in known],
            (self._axis(self._dearest), self._prices.floor),
        )
        overhead = _OVERHEAD * self._dearest
        starts = np.array([candidate is not warm for candidate in candidates], dtype=np.float64)
        start = self._prices.start * (self._dearest + overhead)
        return added / (starts * start + self._prices.of(epochs) * (costs + overhead))

    def _axis(self, gmacs: ArrayLike) -> Any:
        return np.log(np.divide(gmacs, self._cheapest)) if self._prices.log_cost else gmacs

    def _lack(self, candidate: Candidate, top1: float) -> float:
        return max(0.0, self._dense[candidate.width].top1 - top1)


def _last_fit(count: int) -> int:
    """The number of trainings that the kernel's scales are fitted to: at each tenth more."""
    fit = 0
    while (after := fit + max(1, fit // 10)) <= count:
        fit = after
    return fit


def smoothed_top1(rows: Sequence[Untrained]) -> dict[Key, float]:
    """Top-1 of each candidate without training, the noise of few images taken out.

    Cross-entropy orders schedules more reliably than top-1. So within a width the best top-1 is
    given to the candidate of the least cross-entropy, the next to the next, and so on.
    """
    found: dict[Key, float] = {}
    for width in sorted({row.candidate.width for row in rows}):
        own = [row for row in rows if row.candidate.width == width]
        order = np.argsort([row.loss for row in own], kind="stable")
        values = sorted((row.top1 for row in own), reverse=True)
        found |= {own[i].candidate.key: value for i, value in zip(order, values, strict=True)}
    return found
