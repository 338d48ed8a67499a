"""Which samples make up which batch on which rank: pure functions of seed and epoch."""

from __future__ import annotations

import numpy as np


def train_order(
    num_samples: int, *, global_batch: int, seed: int, epoch: int, repeats: int = 1
) -> np.ndarray:
    """Shuffled sample indices of one training epoch: [N // global_batch, global_batch] int64.

    The rows do not depend on the number of ranks: rank r of W takes `row[r::W]`, so world sizes
    1, 2 and 4 see the same global batches. The incomplete last batch is dropped. With `repeats`
    (repeated augmentation, Hoffer et al. 2020, as in DeiT) each chosen sample comes this many
    times in a row, so that it meets other ranks or other crops; the epoch's length stays N.

    Raises:
        ValueError: fewer samples than one global batch.
    """
    if num_samples < global_batch:
        raise ValueError(
            f"{num_samples} training samples do not fill one global batch of {global_batch}: "
            "use a smaller batch size"
        )
    permutation = np.random.default_rng([seed, epoch]).permutation(num_samples)
    if repeats > 1:
        permutation = np.repeat(permutation[: -(-num_samples // repeats)], repeats)[:num_samples]
    steps = num_samples // global_batch
    return permutation[: steps * global_batch].reshape(steps, global_batch)


def eval_order(
    num_samples: int, *, batch_size: int, rank: int, world_size: int
) -> list[np.ndarray]:
    """The batches one rank evaluates: every sample exactly once over all ranks, none duplicated.

    [≤ batch_size] int64 each; the last may be short, and ranks may differ by one batch.
    """
    mine = np.arange(rank, num_samples, world_size)
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
