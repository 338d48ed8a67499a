"""What candidates should add to the front, if they come to what is expected of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["added_volume"]


def added_volume(points: ArrayLike, known: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """Hypervolume that each candidate alone would add to what is known.

    Args:
        points: the cost and quality of each candidate `[n, 2]`.
        known: the cost and quality of what is there already `[m, 2]`; may be empty.
        reference: the cost above and the quality below which nothing counts `[2]`.

    Returns:
        One volume a candidate `[n]`, in units of cost times quality.

    Raises:
        ValueError: if the shapes do not fit, or something is not finite.
    """
    rows = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    front = np.asarray(known, dtype=np.float64).reshape(-1, 2)
    worst = np.asarray(reference, dtype=np.float64)
    if worst.shape != (2,):
        raise ValueError(f"the reference must be a cost and a quality, got {worst.tolist()}")
    if not all(np.isfinite(values).all() for values in (rows, front, worst)):
        raise ValueError("a cost or a quality is not finite")
    # Between two costs of the front its height is constant: a row adds what it stands above it.
    inside = front[front[:, 0] < worst[0]]
    inside = inside[np.argsort(inside[:, 0], kind="stable")]
    edges = np.concatenate([[-np.inf], inside[:, 0], [worst[0]]])
    heights = np.maximum.accumulate(np.concatenate([[worst[1]], inside[:, 1]]))
    heights = np.maximum(heights, worst[1])
    # What is behind the front changes nothing, and may be nearly everything.
    rises = np.concatenate([[True], np.diff(heights) > 0])
    edges, heights = np.append(edges[:-1][rises], worst[0]), heights[rises]
    widths = edges[None, 1:] - np.maximum(edges[None, :-1], rows[:, :1])
    above = rows[:, 1:] - heights[None, :]
    gains: NDArray[np.float64] = (widths.clip(min=0) * above.clip(min=0)).sum(axis=1)
    return gains
