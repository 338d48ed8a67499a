"""How long a schedule will take, before any model is trained: measured block by block.

Time does not depend on what the weights are, so models of random weights tell it. It is taken to
be a sum over blocks, as the MACs are: what a block and the pooling after it take, given the tokens
that enter and leave. Few pairs of counts are measured and the rest interpolated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of one width by one method, at a batch size, on one kind of device.

    Attributes:
        counts: `[n]` token counts, ascending; the last is the number of patches.
        blocks: `[n][n]`, entry `[i][j]`, j ≤ i, of a block that counts[i] patch tokens enter and
            counts[j] leave, pooling included.
        rest: patch embedding and head.
    """

    counts: tuple[int, ...]
    blocks: tuple[tuple[float, ...], ...]
    rest: float

    def predictor(self) -> Callable[[Sequence[int]], float]:
        """Milliseconds of a batch for a schedule."""
        levels = np.arange(1.0, self.counts[-1] + 1)
        counts = np.array(self.counts, dtype=np.float64)
        between = _interpolated(counts, np.array(self.blocks), levels)

        def predict(schedule: Sequence[int]) -> float:
            kept = np.array([self.counts[-1], *schedule]) - 1
            return self.rest + float(between[kept[:-1], kept[1:]].sum())

        return predict


def _interpolated(counts: Array, blocks: Array, levels: Array) -> Array:
    """`[m, m]` between all levels: linear in the share of tokens kept, then in those that enter.

    A block that keeps all its tokens does not cluster, so the diagonal is apart from the rest.
    """
    found = np.diag(np.interp(levels, counts, np.diagonal(blocks)))
    for i, entering in enumerate(levels):
        upper = int(np.clip(np.searchsorted(counts, entering), 1, len(counts) - 1))
        lower = max(upper - 1, 1)  # nothing is pooled at the least count: no row starts there
        span = counts[upper] - counts[lower]
        share = float(np.clip((entering - counts[lower]) / span, 0, 1)) if span else 1.0
        rates = levels[:i] / entering
        low, high = (_along(counts, blocks, row, rates) for row in (lower, upper))
        found[i, :i] = (1 - share) * low + share * high
    return found


def _along(counts: Array, blocks: Array, row: int, rates: Array) -> Array:
    """Of one measured count that enters; towards keeping all it goes on as steeply as it came."""
    x, y = counts[:row] / counts[row], blocks[row, :row]
    slope = (y[-1] - y[-2]) / (x[-1] - x[-2]) if row > 1 else 0.0
    inside: Array = np.interp(rates, x, y)
    return inside + np.maximum(rates - x[-1], 0.0) * slope
