"""Intervals of means, and of ratios of means, over the same images: by resampling the images."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["difference_interval", "mean_interval", "ratio_interval"]

_RESAMPLES, _LEVEL, _SEED = 4000, 0.95, 0

Values = NDArray[np.floating]


def mean_interval(values: Values) -> tuple[float, float]:
    """95 % interval of the mean of `values [n]`."""
    return _middle(_weights(len(values)) @ values.astype(np.float64))


def ratio_interval(values: Values, others: Values) -> tuple[float, float, float]:
    """mean(values) / mean(others) and its 95 % interval; both `[n]`, of the same images.

    Paired: a draw of images is the same one for both, so that what makes an image hard for either
    does not widen the interval.
    """
    above, below = values.astype(np.float64), others.astype(np.float64)
    weights = _weights(len(above))
    low, high = _middle((weights @ above) / (weights @ below))
    return float(above.mean() / below.mean()), low, high


def difference_interval(
    values: NDArray[np.bool_], others: NDArray[np.bool_]
) -> tuple[float, float, float]:
    """mean(values) − mean(others) and its 95 % interval; both `[seeds, n]`, of the same images.

    Paired: images and seeds are drawn, and a draw is the same one for both.
    """
    apart = values.astype(np.float64) - others.astype(np.float64)
    rng = np.random.default_rng([_SEED, 1])
    seeds = len(apart)
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=_RESAMPLES) / seeds
    low, high = _middle(np.einsum("rn,rn->r", drawn @ apart, _weights(apart.shape[1])))
    return float(apart.mean()), low, high


@lru_cache(maxsize=4)
def _weights(images: int) -> NDArray[np.float64]:
    """`[resamples, images]`: how often each is drawn, over all; the same for all calls."""
    rng = np.random.default_rng(_SEED)
    drawn = rng.multinomial(images, np.full(images, 1 / images), size=_RESAMPLES)
    return drawn / images


def _middle(means: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)
