"""Who goes into train, minival and val: pure functions of labels and seed."""

from __future__ import annotations

import numpy as np

from pipelines.data.manifest import SPLITS

NO_SPLIT = len(SPLITS)
"""Where a position in SPLITS stands, of an image that is refused."""


def stratified_pick(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Pick the same fraction, from 0 to below 1, of every class: [N] bool of `labels` [N].

    Shares are rounded to the nearest image; a class of two or more images gives at least one and
    keeps at least one.
    """
    picked = np.zeros(len(labels), np.bool_)
    if fraction <= 0:
        return picked
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        wanted = int(np.rint(len(members) * fraction))
        if len(members) > 1:
            wanted = min(max(wanted, 1), len(members) - 1)
        picked[rng.permutation(members)[:wanted]] = True
    return picked


def assign_splits(
    in_val: np.ndarray, labels: np.ndarray, *, val: float, minival: float, seed: int
) -> np.ndarray:
    """The position in SPLITS of each image, [N] uint8.

    Where the source declares some `in_val` [N], they are kept as val. Else `val` of all images is
    taken out, stratified. Then `minival` of the remaining training images becomes minival, so that
    nothing is ever chosen by looking at val.
    """
    result = np.where(in_val, SPLITS.index("val"), SPLITS.index("train")).astype(np.uint8)
    if not in_val.any():
        picked = stratified_pick(labels, val, np.random.default_rng([seed, 1]))
        result[picked] = SPLITS.index("val")
    train = np.flatnonzero(result == SPLITS.index("train"))
    chosen = stratified_pick(labels[train], minival, np.random.default_rng([seed, 2]))
    result[train[chosen]] = SPLITS.index("minival")
    return result
