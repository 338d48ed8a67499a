"""In which order candidates are worth training: those first that should add most to the front."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["by_volume"]


def by_volume(points: ArrayLike, known: ArrayLike, reference: ArrayLike) -> list[int]:
    """All candidates, each time the one next that adds most hypervolume to those before it.

    So a search that is ended early, by its budget or by hand, has trained what it expected most
    of. Candidates that add nothing to those before come after all that do, again among themselves
    by what they add: what is expected of a candidate may be wrong.

    Args:
        points: `[n, 2]`, cost and expected quality of each candidate.
        known: `[m, 2]`, what is there already, e.g. the dense models; may be empty.
        reference: `[2]`, the cost above and the quality below which nothing counts.

    Returns:
        Indices of all candidates; equal ones in the order they came in.

    Raises:
        ValueError: The shapes do not fit, or something is not finite.
    """
    rows = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    there = np.asarray(known, dtype=np.float64).reshape(-1, 2)
    worst = np.asarray(reference, dtype=np.float64)
    if worst.shape != (2,):
        raise ValueError(f"the reference must be a cost and a quality, got {worst.tolist()}")
    if not all(np.isfinite(values).all() for values in (rows, there, worst)):
        raise ValueError("a cost or a quality is not finite")
    left = list(range(len(rows)))
    order: list[int] = []
    front = there
    while left:
        gains = _gains(rows[left], front, worst)
        best = int(np.argmax(gains))
        if gains[best] <= 0:
            if len(front) == len(there):
                order += left  # not even alone do they add anything
                break
            front = there
            continue
        order.append(left.pop(best))
        front = np.vstack([front, rows[order[-1]]])
    return order


def _gains(
    rows: NDArray[np.float64], front: NDArray[np.float64], worst: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Area that each row adds to what `front` dominates, `[n]`.

    Between two costs of the front its height is constant: the row adds what it stands above it.
    """
    inside = front[front[:, 0] < worst[0]]
    inside = inside[np.argsort(inside[:, 0], kind="stable")]
    edges = np.concatenate([[-np.inf], inside[:, 0], [worst[0]]])
    heights = np.maximum.accumulate(np.concatenate([[worst[1]], inside[:, 1]]))
    heights = np.maximum(heights, worst[1])
    widths = edges[None, 1:] - np.maximum(edges[None, :-1], rows[:, :1])
    above = rows[:, 1:] - heights[None, :]
    gains: NDArray[np.float64] = (widths.clip(min=0) * above.clip(min=0)).sum(axis=1)
    return gains
