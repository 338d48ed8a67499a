"""Racing: candidates that are clearly dominated are dropped after few images.

Candidates are scored on growing samples of the same images in the same random order, so what tells
two apart is the mean of paired differences. After each look one is dropped if some rival that costs
no more is surely better: if the lower confidence bound of the mean difference is above zero, by a
paired t test for samples without replacement, corrected for the number of all comparisons of a race
(Maron and Moore, "Hoeffding Races", 1994; with the t test as in Birattari's F-Race, 2002). A bound
without a distribution (Hoeffding's, or Bernstein's with the measured variance) goes by the range of
a loss, which is so wide that nobody would ever be dropped. But differences of losses have heavy
tails: so each comparison is made with one more image than was seen, on which the rival does as
badly against the candidate as the two ever differed.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

FIRST_LOOK = 32
"""Fewer images than this are no sample: the mean's distribution is not near normal."""

Floats = NDArray[np.floating]


def looks(images: int, first: int = FIRST_LOOK) -> list[int]:
    """After how many images to look: doubling, from a 32nd but at least `first`; then all.

    Raises:
        ValueError: if a number is below 1.
    """
    if images < 1 or first < 1:
        raise ValueError(f"images and first must be at least 1, got {images} and {first}")
    size, found = max(first, math.ceil(images / 32)), []
    while size * 4 <= images * 3:  # a look that leaves less than a quarter saves too little
        found.append(size)
        size *= 2
    return [*found, images]


def beaten(
    costs: Floats,
    losses: Floats,
    rival_costs: Floats,
    rival_losses: Floats,
    *,
    images: int,
    error: float,
    tolerance: float = 0.0,
) -> NDArray[np.bool_]:
    """Which candidates are surely dominated, by a rival or by one another.

    Args:
        costs: the costs of the candidates in the race `[n]`.
        losses: their losses on the m images seen so far `[n, m]`; finite.
        rival_costs: the costs of those that were scored on all images before `[k]`.
        rival_losses: the losses of those on the same m images `[k, m]`.
        images: how many images the whole set has, of which the m are a random sample without
            replacement.
        error: the probability with which a single comparison may err.
        tolerance: a candidate is dropped too if it is surely not better than a rival by more than
            this. Not so against one another: what beats it might be dropped for a third.

    Raises:
        ValueError: if shapes differ, or fewer than two images were seen.
    """
    everybody = np.concatenate([losses, rival_losses]).astype(np.float64)
    prices = np.concatenate([costs, rival_costs]).astype(np.float64)
    if everybody.ndim != 2 or len(everybody) != len(prices) or len(losses) != len(costs):
        raise ValueError(f"{len(prices)} costs for losses of shape {everybody.shape}")
    seen = everybody.shape[1]
    if seen < 2:
        raise ValueError("a race needs at least two images for a first look")
    allowance = np.where(np.arange(len(prices)) < len(costs), 0.0, tolerance)
    quantile = student_quantile(1.0 - error, seen - 1)
    left = max(0.0, 1.0 - seen / images)
    found = np.zeros(len(costs), dtype=bool)
    for index, cost in enumerate(prices[: len(costs)]):
        cheap = prices <= cost
        cheap[index] = False  # nobody is a rival of itself
        worse = everybody[index] - everybody[cheap] + allowance[cheap, None]
        unseen = -np.abs(worse).max(1, initial=0.0)
        mean = worse.mean(1)
        # Of m values with mean d and squared deviations S, and one more value v: the mean is
        # (m·d + v) / (m + 1), and the squared deviations are S + m / (m + 1) · (d - v)².
        squares = ((worse - mean[:, None]) ** 2).sum(1) + seen / (seen + 1) * (mean - unseen) ** 2
        spread = np.sqrt(squares / seen / (seen + 1) * left)
        found[index] = ((seen * mean + unseen) / (seen + 1) > quantile * spread).any()
    return found


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t, by its expansion around the normal's (Abramowitz 26.7.5).

    Good to a hundredth for 30 degrees of freedom and more.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
