"""Clustering of token sets: K-Means and K-Medoids, weighted and not, as pure functions.

Both minimise Σᵢ wᵢ minⱼ ‖fᵢ − cⱼ‖² (Token Pooling, arXiv 2110.03860), with a
fixed number of iterations, fixed shapes, and no loop over clusters or images, so that they compile
to one graph and never wait for the device. Distances are squared L2 of the centred features,
accumulated in fp32 (fp64 for fp64 input) whatever autocast says. Nothing here is differentiated
but the final gather or mean: the assignment is a constant for the gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokenpool import gpu, kernels

__all__ = ["Clustering", "kmeans", "kmedoids", "nearest", "reconstruction_error"]


class Clustering(NamedTuple):
    """The result of clustering `x [B, N, C]` into k clusters.

    Attributes:
        centers: `[B, k, C]`, in the dtype of `x`; differentiable with respect to `x`.
        assignment: `[B, N]`, the cluster 0..k-1 of every token.
        sizes: `[B, k]`, how many tokens each cluster has.
        medoids: `[B, k]`, the token that each centre is, or None where centres are means.
    """

    centers: Tensor
    assignment: Tensor
    sizes: Tensor
    medoids: Tensor | None


def kmedoids(
    x: Tensor,
    k: int,
    weights: Tensor | None = None,
    iterations: int = 5,
    init: Tensor | None = None,
) -> Clustering:
    """Cluster tokens around k of themselves.

    Each iteration assigns every token to its nearest medoid, then moves each medoid to the member
    with the least Σ_j w_j·d(c, j) over the members j of its own cluster (the weights are those of
    the members, not of the candidate). A last assignment follows. Each medoid stays in its own
    cluster, so none is empty; ties go to the lowest index.

    Args:
        x: the tokens `[B, N, C]`.
        k: the number of clusters, 1..N; N is the identity.
        weights: the importance of each token `[B, N]`, ≥ 0; None: all are equal.
        iterations: how often medoids are moved.
        init: scores `[B, N]`; the k highest start as medoids. None: `weights` if given (ties, and
            no weights at all, fall back to tokens spread evenly over the ranks of the distance to
            the mean, which does not depend on the order of the tokens).

    Raises:
        ValueError: for non-finite tokens, weights or scores, negative weights, k outside 1..N, or
            shapes that do not match.
    """
    weights, init = _check(x, k, weights, init, iterations)
    if k == x.shape[1]:
        return _identity(x, with_medoids=True)
    with torch.no_grad():
        features = work_features(x)
        start = initial_indices(features, k, weights if init is None else init)
        assignment, medoids = kernels.kmedoids(features, start, weights, iterations)
    return Clustering(gather_tokens(x, medoids), assignment, cluster_sizes(assignment, k), medoids)


def kmeans(
    x: Tensor,
    k: int,
    weights: Tensor | None = None,
    iterations: int = 5,
    init: Tensor | None = None,
) -> Clustering:
    """Cluster tokens around (weighted) means: Lloyd's algorithm.

    Each iteration assigns every token to its nearest centre and moves each centre to the weighted
    mean of its members; a centre without members, or whose members weigh nothing, goes back to the
    token it started at. A last assignment follows.

    Args:
        x: the tokens `[B, N, C]`.
        k: the number of clusters, 1..N; N is the identity.
        weights: the importance of each token `[B, N]`, ≥ 0; None: all are equal.
        iterations: how often centres are moved.
        init: scores `[B, N]` that say where to start, as in `kmedoids`.

    Raises:
        ValueError: as `kmedoids`.
    """
    weights, init = _check(x, k, weights, init, iterations)
    if k == x.shape[1]:
        return _identity(x, with_medoids=False)
    with torch.no_grad():
        features = work_features(x)
        start = initial_indices(features, k, weights if init is None else init)
    centers, assignment = kmeans_means(x, features, start, weights, iterations)
    return Clustering(centers, assignment, cluster_sizes(assignment, k), None)


def reconstruction_error(x: Tensor, centers: Tensor, weights: Tensor | None = None) -> Tensor:
    """Σᵢ wᵢ minⱼ ‖xᵢ − centersⱼ‖² for each image (the paper's ℓ).

    Args:
        x: the tokens `[B, N, C]`.
        centers: the centres `[B, k, C]`.
        weights: how much each token counts `[B, N]`, ≥ 0; None: all count 1.

    Returns:
        One error an image `[B]`, in fp32 (fp64 for fp64 tokens).

    Raises:
        ValueError: for non-finite input, negative weights, or shapes that do not match.
    """
    if x.dim() != 3 or centers.dim() != 3 or x.shape[::2] != centers.shape[::2]:
        raise ValueError(
            f"tokens must be [B, N, C] and centers [B, k, C], not {_shape(x)} and {_shape(centers)}"
        )
    _check_finite(x, "tokens")
    _check_finite(centers, "centers")
    weights = _check_weights(x, weights, "weights")
    if weights is not None and bool((weights < 0).any()):
        raise ValueError("weights must not be negative")
    best, _ = nearest(x, centers)
    return best.sum(-1) if weights is None else (best * weights.to(best.dtype)).sum(-1)


def nearest(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """The squared distance to, and the index of, the nearest of `centers`, both `[B, N]`.

    Works on the differences themselves where they are few, else on the expanded square; the latter
    is re-measured on the winning pair, so that a token that equals a centre has distance 0.
    """
    dtype = work_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        shift = x.to(dtype).mean(1, keepdim=True)
        tokens, anchors = x.to(dtype) - shift, centers.to(dtype) - shift
        scores = torch.baddbmm(
            anchors.square().sum(-1).unsqueeze(1), tokens, anchors.transpose(1, 2), alpha=-2
        )
        index = scores.argmin(-1)
        best = (tokens - gather_tokens(anchors, index)).square().sum(-1)
    return best, index


def work_dtype(x: Tensor) -> torch.dtype:
    """The dtype distances are accumulated in: fp64 for fp64 tokens, else fp32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def work_features(x: Tensor) -> Tensor:
    """Tokens `[B, N, C]` centred, in the dtype distances are accumulated in.

    Centring leaves distances as they are and keeps the expanded square from cancelling where all
    tokens share a large offset.
    """
    x = x.to(work_dtype(x))
    return x - x.mean(1, keepdim=True)


def initial_indices(features: Tensor, k: int, scores: Tensor | None) -> Tensor:
    """The k tokens `[B, k]`, ascending, at which clustering starts: those of highest score.

    Where scores tie (or are None), tokens spread evenly over the ranks of the distance to the mean
    go first: a deterministic start that permutes with the tokens.

    Args:
        features: centred tokens `[B, N, C]`.
        k: how many tokens.
        scores: the score of each token `[B, N]`, or None.
    """
    tokens = features.shape[1]
    ranked = features.square().sum(-1).argsort(dim=-1, stable=True)
    steps = torch.arange(k, device=features.device)
    chosen = ranked[:, (2 * steps + 1) * tokens // (2 * k)]
    if scores is not None:
        late = torch.ones_like(ranked).scatter_(1, chosen, 0)
        order = late.argsort(dim=-1, stable=True)
        best = scores.gather(1, order).argsort(dim=-1, descending=True, stable=True)[:, :k]
        chosen = order.gather(1, best)
    return chosen.sort(dim=-1).values


def top_indices(scores: Tensor, k: int) -> Tensor:
    """The k tokens of highest score `[B, k]`, ascending; ties go to the lowest index."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return order[:, :k].sort(dim=-1).values


def matched_indices(features: Tensor, k: int) -> Tensor:
    """The k tokens `[B, k]`, ascending, left when those most like another one are dropped.

    Rounds of bipartite matching as in ToMe (arXiv 2210.09461): the tokens left are split
    alternately in two sets, and those of the first set that are nearest to the second are dropped;
    a round can drop half. The rounds depend on N and k alone.

    Args:
        features: centred tokens `[B, N, F]`.
        k: how many are left, at least 1.
    """
    batch, count, _ = features.shape
    left = torch.arange(count, device=features.device).expand(batch, -1)
    for drop in matching_rounds(count, k):
        first, second = left[:, ::2], left[:, 1::2]
        a, b = gather_tokens(features, first), gather_tokens(features, second)
        with torch.autocast(features.device.type, enabled=False):
            product = torch.bmm(a, b.transpose(1, 2))
        distance = b.square().sum(-1).unsqueeze(1) - 2 * product
        nearest_distance = distance.amin(-1) + a.square().sum(-1)
        kept = top_indices(nearest_distance, first.shape[1] - drop)
        left = torch.cat((first.gather(1, kept), second), 1).sort(dim=-1).values
    return left


def matching_rounds(tokens: int, k: int) -> list[int]:
    """How many tokens each round of `matched_indices` drops, from `tokens` to k."""
    rounds = []
    while tokens > k:
        rounds.append(min(tokens - k, tokens // 2))
        tokens -= rounds[-1]
    return rounds


def matching_macs(tokens: int, k: int, features: int) -> int:
    """Multiply-accumulates of `matched_indices` for one image.

    Args:
        tokens: how many tokens there are.
        k: how many are left.
        features: channels of a token.
    """
    total = 0
    for drop in matching_rounds(tokens, k):
        total += (tokens - tokens // 2) * (tokens // 2) * features
        tokens -= drop
    return total


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index [B, k]` of `x [B, N, C]`, as `[B, k, C]`."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def segment_means(x: Tensor, members: Tensor, start: Tensor, weights: Tensor | None) -> Tensor:
    """The (weighted) mean `[B, k, C]` of the members of each cluster.

    Args:
        x: the tokens `[B, N, C]`; the means are differentiable by them, and in their dtype.
        members: the cluster of each token `[B, N]`, or −1.
        start: the token `[B, k]` that stands in where there are no members, or none of weight.
        weights: how much each token counts `[B, N]`, ≥ 0; None: all alike.
    """
    count = start.shape[1]
    dtype = work_dtype(x)
    share = torch.ones_like(members, dtype=dtype) if weights is None else weights.to(dtype)
    share = torch.where(members < 0, 0, kernels.scaled(share))
    members = members.clamp_min(0)
    mass = share.new_zeros(share.shape[0], count).scatter_add(1, members, share)
    sums = kernels.segment_sum(x.to(dtype) * share.unsqueeze(2), members, count)
    inverse = torch.where(mass > kernels.NOTHING, 1 / mass, 0).unsqueeze(2)
    means = torch.where(inverse > 0, sums * inverse, gather_tokens(x, start).to(dtype))
    return means.to(x.dtype)


def kmeans_means(
    x: Tensor, features: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor]:
    """The means `[B, k, C]` and the assignment `[B, N]` of K-Means.

    Args:
        x: the tokens `[B, N, C]` that are averaged; the means are differentiable by them.
        features: centred features `[B, N, F]` that are clustered.
        start: the tokens `[B, k]` to start at.
        weights: how much each token counts `[B, N]`, ≥ 0; None: all alike.
        iterations: how often centres are moved.
    """
    if gpu.usable(x.shape[1], x, features):
        means, assignment, _ = gpu.kmeans(x, features, start, weights, iterations)
        return means, assignment
    with torch.no_grad():
        assignment, members = kernels.kmeans(features, start, weights, iterations)
    return segment_means(x, members, start, weights), assignment


def cluster_sizes(assignment: Tensor, k: int) -> Tensor:
    """How many tokens each of the k clusters of `assignment [B, N]` has, `[B, k]`."""
    sizes = torch.zeros(assignment.shape[0], k, dtype=torch.long, device=assignment.device)
    return sizes.scatter_add_(1, assignment, torch.ones_like(assignment))


def _identity(x: Tensor, *, with_medoids: bool) -> Clustering:
    """Every token its own cluster."""
    index = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
    return Clustering(x, index, torch.ones_like(index), index if with_medoids else None)


def _check(
    x: Tensor, k: int, weights: Tensor | None, init: Tensor | None, iterations: int
) -> tuple[Tensor | None, Tensor | None]:
    """Refuse bad input; give weights and scores back in the working dtype."""
    if x.dim() != 3:
        raise ValueError(f"tokens must be [B, N, C], not {_shape(x)}")
    if not x.is_floating_point():
        raise ValueError(f"tokens must be floating point, not {x.dtype}")
    if not 1 <= k <= x.shape[1]:
        raise ValueError(f"k is {k} but must lie in 1..{x.shape[1]}, the number of tokens")
    if iterations < 0:
        raise ValueError(f"iterations is {iterations} but must be at least 0")
    _check_finite(x, "tokens")
    weights = _check_weights(x, weights, "weights")
    if weights is not None and bool((weights < 0).any()):
        raise ValueError(f"weights must not be negative, but the least is {weights.min().item():g}")
    return weights, _check_weights(x, init, "init scores")


def _check_weights(x: Tensor, values: Tensor | None, name: str) -> Tensor | None:
    """Weights or scores of the tokens in the working dtype; refused if they do not fit."""
    if values is None:
        return None
    if values.shape != x.shape[:2]:
        raise ValueError(
            f"{name} must be {_shape(x[..., 0])} for these tokens, not {_shape(values)}"
        )
    _check_finite(values, name)
    return values.detach().to(work_dtype(x))


def _check_finite(values: Tensor, name: str) -> None:
    bad = values.numel() - int(torch.isfinite(values).sum())
    if bad:
        raise ValueError(f"{name} hold {bad} NaN or infinite values")


def _shape(x: Tensor) -> str:
    return "[" + ", ".join(str(size) for size in x.shape) + "]"
