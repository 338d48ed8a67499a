"""What stands for a cluster: its medoid, its mean, or its mean weighted by significance."""

import torch
from torch import Tensor

from tokenpool.clustering import gather_tokens, segment_means
from tokenpool.kernels import segment_argmin

__all__ = ["cluster_means", "medoids_near_means"]


def cluster_means(x: Tensor, assignment: Tensor, k: int, weights: Tensor | None) -> Tensor:
    """The (weighted) mean `[B, k, C]` of each cluster of `x [B, N, C]`, none of them empty.

    Where the members weigh nothing, one of them stands in.
    """
    with torch.no_grad():
        first = segment_argmin(torch.zeros_like(assignment, dtype=torch.float32), assignment, k)
    return segment_means(x, assignment, first, weights)


def medoids_near_means(features: Tensor, members: Tensor, start: Tensor) -> Tensor:
    """The member nearest to the mean of its cluster `[B, k]`; `start [B, k]` for an empty one.

    For squared L2 that is the member of least Σ_j d(c, j): the medoid.
    """
    count = start.shape[1]
    means = segment_means(features, members, start, None)
    cost = (features - gather_tokens(means, members)).square().sum(-1)
    taken = torch.zeros_like(start).scatter(1, members, 1)
    return torch.where(taken > 0, segment_argmin(cost, members, count), start)
