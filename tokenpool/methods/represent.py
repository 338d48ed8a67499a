"""What stands for a cluster: its medoid, its mean, or its mean weighted by significance.

Means and medoids are those of the original tokens, where it is known how many each stands for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpool.clustering import gather_tokens, segment_means
from tokenpool.kernels import segment_argmin
from tokenpool.methods.base import TokenSet
from tokenpool.options import Representative

__all__ = ["cluster_means", "mean_weights", "medoids_near_means"]


def mean_weights(given: TokenSet, representative: Representative | None) -> Tensor | None:
    """What a mean weighs tokens by: significance if it is asked for, else their sizes, if any."""
    return given.scores if representative == "weighted_mean" else given.sizes


def cluster_means(x: Tensor, assignment: Tensor, k: int, weights: Tensor | None) -> Tensor:
    """The (weighted) mean `[B, k, C]` of each cluster, or one member where none has any weight.

    Args:
        x: the tokens `[B, N, C]`.
        assignment: the cluster of each token `[B, N]`; none is empty.
        k: how many clusters there are.
        weights: how much each token counts `[B, N]`; None: all alike.
    """
    with torch.no_grad():
        first = segment_argmin(torch.zeros_like(assignment, dtype=torch.float32), assignment, k)
    return segment_means(x, assignment, first, weights)


def medoids_near_means(
    features: Tensor, members: Tensor, start: Tensor, weights: Tensor | None = None
) -> Tensor:
    """The member of each cluster `[B, k]` that is nearest to its mean.

    For squared L2 that is the member of least Σ_j w_j·d(c, j): the medoid.

    Args:
        features: the features of the tokens `[B, N, F]`.
        members: the cluster of each token `[B, N]`.
        start: the token `[B, k]` that stands for a cluster without members.
        weights: how much each token counts `[B, N]`; None: all alike.
    """
    count = start.shape[1]
    means = segment_means(features, members, start, weights)
    cost = (features - gather_tokens(means, members)).square().sum(-1)
    taken = torch.zeros_like(start).scatter(1, members, 1)
    return torch.where(taken > 0, segment_argmin(cost, members, count), start)
