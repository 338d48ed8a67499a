"""Pareto tools: fronts, hypervolume, and how far a candidate lies below a front or would raise it.

One convention holds for the whole module: **a point is a row of costs followed by one quality**,
so `(gmacs, top1)` or `(gmacs, latency_ms, top1)`. Costs are minimised, the last column is
maximised.
"""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray


def _as_points(points: ArrayLike, *, name: str = "points") -> NDArray[np.float64]:
    """`points` as a finite float array `[n, m]` with m ≥ 2."""
    array = np.asarray(points, dtype=np.float64)
    if array.size == 0:
        width = array.shape[1] if array.ndim == 2 and array.shape[1] >= 2 else 2
        return np.empty((0, width))
    if array.ndim != 2 or array.shape[1] < 2:
        raise ValueError(f"{name} must be [n, m] with m >= 2 objectives, got shape {array.shape}")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise ValueError(f"{name} row {row} is not finite: {array[row].tolist()}")
    return array


def _maximised(points: NDArray[np.float64]) -> list[bool]:
    """Which columns are maximised, as moocore is told."""
    return [False] * (points.shape[1] - 1) + [True]


def non_dominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Which points no other point dominates.

    A point dominates another when it is at least as good in every objective and better in one.
    Equal points do not dominate each other: all copies are kept.

    Args:
        points: costs and then quality of each point `[n, m]` (see the module's convention).

    Returns:
        A Boolean mask `[n]`.

    Raises:
        ValueError: if a point is not finite, or the shapes do not fit.
    """
    array = _as_points(points)
    if len(array) == 0:
        return np.zeros(0, dtype=bool)
    mask: NDArray[np.bool_] = moocore.is_nondominated(
        array, maximise=_maximised(array), keep_weakly=True
    )
    return mask


def front_ranks(points: ArrayLike) -> NDArray[np.int64]:
    """Non-dominated sorting: 0 for the front, 1 for the front once that is taken away, and so on.

    Raises:
        ValueError: if a point is not finite, or the shapes do not fit.
    """
    array = _as_points(points)
    if len(array) == 0:
        return np.zeros(0, dtype=np.int64)
    return np.asarray(moocore.pareto_rank(array, maximise=_maximised(array)), dtype=np.int64)


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Volume between the front of `points` and the `reference` point, in the objectives' units.

    Points that are not better than the reference in every objective add nothing.

    Args:
        points: costs and then quality of each point `[n, m]`.
        reference: a point `[m]` worse than any of interest, e.g. (dense GMACs, chance top-1).

    Raises:
        ValueError: if something is not finite, or the shapes do not fit.
    """
    array = _as_points(points)
    worst = np.asarray(reference, dtype=np.float64)
    if len(array) == 0:
        return 0.0
    if worst.shape != (array.shape[1],) or not np.isfinite(worst).all():
        raise ValueError(
            f"the reference must be {array.shape[1]} finite numbers, got {worst.tolist()}"
        )
    return float(moocore.hypervolume(array, ref=worst, maximise=_maximised(array)))


def normalised_hypervolume(
    points: ArrayLike, reference_cost: float, reference_top1: float = 0.0, best_top1: float = 1.0
) -> float:
    """Hypervolume of `(cost, top1)` points as a share of the whole box, in 0..1.

    With the box fixed, the number is comparable between searches on the same data and never falls
    as points are added.

    Args:
        points: the points `[n, 2]`.
        reference_cost: the cost at which the box ends, from 0: the dense widest model's GMACs.
        reference_top1: the top-1 at which the box begins: chance, or 0.
        best_top1: the top-1 at which the box ends.

    Raises:
        ValueError: if the box is empty, or a point is not finite.
    """
    if reference_cost <= 0 or best_top1 <= reference_top1:
        raise ValueError(
            f"the reference box is empty: cost 0..{reference_cost}, "
            f"top-1 {reference_top1}..{best_top1}"
        )
    box = reference_cost * (best_top1 - reference_top1)
    return hypervolume(points, (reference_cost, reference_top1)) / box


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


def distance_to_front(point: ArrayLike, front: ArrayLike) -> float:
    """How much quality a point lacks against a front *at its own cost*.

    The front is read as a staircase: at a given cost one can have the best quality of any front
    point that costs no more. So the distance of `(gmacs, top1)` is in units of top-1: positive
    below the front, 0 on it, negative above it. A point cheaper than the whole front has nothing
    to be compared with and lacks nothing: 0.

    Args:
        point: costs and then quality `[m]`.
        front: costs and then quality `[n, m]`; dominated points in it do no harm.

    Raises:
        ValueError: if something is not finite, or the shapes do not fit.
    """
    row = _as_points([np.asarray(point, dtype=np.float64)], name="point")[0]
    array = _as_points(front, name="front")
    affordable = (array[:, :-1] <= row[:-1]).all(axis=1)
    return float(array[affordable, -1].max() - row[-1]) if affordable.any() else 0.0


def spread(points: ArrayLike) -> NDArray[np.float64]:
    """How alone each point is on the axes scaled to 0..1: distance to its nearest neighbour.

    Returns:
        One distance a point `[n]`; infinite for a point that is the only one.
    """
    array = _as_points(points)
    if len(array) < 2:
        return np.full(len(array), np.inf)
    extent = np.ptp(array, axis=0)
    scaled = (array - array.min(axis=0)) / np.where(extent > 0, extent, 1.0)
    from scipy.spatial import KDTree  # here: the command line starts without scipy

    distances: NDArray[np.float64] = KDTree(scaled).query(scaled, k=2)[0][:, 1]
    return distances


def knee(points: ArrayLike) -> int:
    """Index of the knee of a `(cost, top1)` front: where paying more stops being worth it.

    The knee is the front point farthest above the straight line between the cheapest and the
    best front point, both axes scaled to 0..1 (Satopää et al., "Finding a Kneedle in a Haystack",
    2011). A front without a bulge has its knee at the cheaper end.

    Raises:
        ValueError: if there are no points, or they have other than two columns.
    """
    array = _as_points(points)
    if len(array) == 0 or array.shape[1] != 2:
        raise ValueError(f"a knee needs at least one (cost, top1) point, got shape {array.shape}")
    candidates = np.flatnonzero(non_dominated(array))
    front = array[candidates]
    extent = np.ptp(front, axis=0)
    scaled = (front - front.min(axis=0)) / np.where(extent > 0, extent, 1.0)
    # On scaled axes the line from cheapest to best is the diagonal.
    height = np.round(scaled[:, 1] - scaled[:, 0], 12)
    best = np.lexsort((front[:, 0], -height))[0]
    return int(candidates[best])
