"""What candidates come to by training, expected from their scores without training and from others.

Scores without training order the schedules of one width well where their shape is alike. They
are too kind to schedules that drop nearly everything in the last layers: training helps these less
than it helps those that keep something to the end. So what is trained already corrects what is
expected of its neighbours.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Kernel, WhiteKernel

from tune_spaces.space import Candidate

__all__ = ["TrainedQuality"]

Array = NDArray[np.float64]
_CLIP = 1e-3


class TrainedQuality:
    """A Gaussian process over schedules: how far training lands from a first guess.

    Works on log-odds, where an error of 1 % against 2 % counts as much as one of 10 % against
    20 %. The kernel sees, per layer, the log of what is kept, and the log of the width. Nothing is
    random.

    Args:
        patches: the patch tokens that enter the first block.
        trained: the candidates that were trained.
        guesses: what was expected of them `[n]`, fractions.
        qualities: what they came to `[n]`, fractions; more is better.
        kernel: a kernel whose scales are taken as they are; None: they are fitted to what was
            trained, which takes some fifty times as long.

    Attributes:
        kernel: the kernel with its scales; None where nothing was trained.

    Raises:
        ValueError: if lengths differ.
    """

    def __init__(
        self,
        patches: int,
        trained: Sequence[Candidate],
        guesses: ArrayLike,
        qualities: ArrayLike,
        kernel: Kernel | None = None,
    ) -> None:
        first, found = np.asarray(guesses, dtype=float), np.asarray(qualities, dtype=float)
        if not len(trained) == len(first) == len(found):
            raise ValueError(
                f"{len(trained)} candidates, {len(first)} guesses and {len(found)} qualities"
            )
        self._patches = patches
        self._process: GaussianProcessRegressor | None = None
        self.kernel: Kernel | None = None
        if not trained:
            return
        process = (
            GaussianProcessRegressor(_scales(), alpha=1e-6)
            if kernel is None
            else GaussianProcessRegressor(kernel, alpha=1e-6, optimizer=None)
        )
        with warnings.catch_warnings():
            # A scale that ends at its bound, with few candidates most do.
            warnings.simplefilter("ignore", ConvergenceWarning)
            process.fit(self._features(trained, first), _log_odds(found) - _log_odds(first))
        self.kernel = process.kernel_
        self._process = process

    def predict(
        self, candidates: Sequence[Candidate], guesses: ArrayLike, optimism: float = 0.0
    ) -> Array:
        """What is expected of candidates `[n]`, fractions.

        Args:
            candidates: the candidates.
            guesses: what was guessed of them `[n]`, fractions.
            optimism: how many standard deviations are added to the means.
        """
        first = np.asarray(guesses, dtype=float)
        if self._process is None or not len(first):
            return first
        features = self._features(candidates, first)
        if optimism:
            mean, deviation = self._process.predict(features, return_std=True)
            shift = mean + optimism * deviation
        else:
            shift = self._process.predict(features)
        odds = _log_odds(first) + shift
        return np.asarray(1 / (1 + np.exp(-odds)))

    def _features(self, candidates: Sequence[Candidate], guesses: Array) -> Array:
        kept = [list(candidate.schedule) for candidate in candidates]
        logs = np.log(np.asarray(kept, dtype=float).reshape(len(kept), -1) / self._patches)
        # Scaled so that half as much width again is as far as keeping a third in one layer.
        widths = 3.0 * np.log([[float(candidate.width)] for candidate in candidates])
        return np.concatenate([logs, widths, 0.5 * _log_odds(guesses)[:, None]], axis=1)


def _scales() -> Kernel:
    """The kernel before it is fitted."""
    return (
        ConstantKernel(0.5, (0.01, 4.0))  # all are better or worse than guessed
        + ConstantKernel(0.3, (0.01, 2.0)) * RBF(1.0, (0.3, 5.0))
        + WhiteKernel(0.02, (0.003, 0.1))
    )


def _log_odds(values: Array) -> Array:
    clipped = np.clip(values, _CLIP, 1 - _CLIP)
    odds: Array = np.log(clipped / (1 - clipped))
    return odds
