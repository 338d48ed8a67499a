"""What stands for a cluster: its medoid, its mean, or its mean weighted by significance."""

import torch
from torch import Tensor

from tokenpool.clustering import gather_tokens, mix_tokens, work_dtype
from tokenpool.kernels import segment_argmin

__all__ = ["averaging", "cluster_means", "medoids_near_means"]


def averaging(assignment: Tensor, k: int, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The matrix `[B, k, N]` whose rows average the (weighted) members of each cluster.

    Plain where the members weigh nothing. A one-hot matrix and not a scatter: deterministic on
    every device, and it exports.
    """
    clusters = torch.arange(k, device=assignment.device).view(1, k, 1)
    member = (assignment.unsqueeze(1) == clusters).to(dtype)
    mass = member if weights is None else member * weights.to(dtype).unsqueeze(1)
    mass = torch.where(mass.sum(-1, keepdim=True) > 0, mass, member)
    return mass / mass.sum(-1, keepdim=True).clamp_min(1e-30)


def cluster_means(x: Tensor, assignment: Tensor, k: int, weights: Tensor | None) -> Tensor:
    """The (weighted) mean `[B, k, C]` of each cluster of `x [B, N, C]`; k·N·C MACs."""
    return mix_tokens(x, averaging(assignment, k, weights, work_dtype(x)))


def medoids_near_means(
    features: Tensor, assignment: Tensor, k: int, weights: Tensor | None
) -> Tensor:
    """The member nearest to the (weighted) mean of its cluster, `[B, k]`; k·N·F MACs.

    For squared L2 that is the member of least Σ_j w_j·d(c, j): the medoid.
    """
    means = cluster_means(features, assignment, k, weights)
    cost = (features - gather_tokens(means, assignment)).square().sum(-1)
    return segment_argmin(cost, assignment, k)
