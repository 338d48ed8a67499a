"""Agglomerative clustering of token sets in few batched rounds, as one pure function.

Bottom-up clustering merges the two nearest clusters until k are left: N − k steps, each over all
pairs. With average, complete, single and Ward's linkage a merged cluster is no nearer to any other
than the nearer of its two parts was (they are *reducible*; Bruynooghe 1977, Murtagh 1983). So two
clusters that are each other's nearest will be merged whatever happens elsewhere, and all such pairs
can be merged in one round; merges so found, in order of their height, are those of the sequence.
The heights found so far bound the height at which k clusters are left, and clusters that have no
neighbour below it are done with: the distances left to look at are soon a small part of all.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tokenpool import kernels
from tokenpool.options import Linkage

__all__ = ["agglomerative_labels"]

# Rounds where their number must not depend on the data. Of 196 tokens of a ViT 182 to 98 are left
# after 4 to 9 rounds.
_ROUNDS = 8


class _Clusters(NamedTuple):
    """The M clusters of each image that may still be merged.

    Attributes:
        distances: `[B, M, M]`, infinite on the diagonal and for clusters that are gone. For Ward's
            linkage the squared distances of the means.
        ids: `[B, M]`, ascending: the lowest token of each, which it is known by.
        sizes: `[B, M]`, what its tokens weigh.
        heights: `[B, M]`, of the merge that made it; 0 for a token.
    """

    distances: Tensor
    ids: Tensor
    sizes: Tensor
    heights: Tensor


class _Merges(NamedTuple):
    """What was merged, each merge at the token it ended: the lowest of the higher cluster.

    Attributes:
        into: `[B, N]`, the lowest token of the cluster that took it, or the token itself.
        heights: `[B, N]`, infinite if the token still leads a cluster.
        rounds: `[B, N]`, when.
    """

    into: Tensor
    heights: Tensor
    rounds: Tensor


def agglomerative_labels(
    features: Tensor, k: int, linkage: Linkage = "ward", sizes: Tensor | None = None
) -> Tensor:
    """The labels `[B, N]` in 0..k-1 of agglomerative clustering on squared L2 distances.

    Clusters are numbered by their lowest token. The result is that of merging the two nearest
    clusters N − k times; where heights tie, the merge found first comes first, then the one of
    lowest tokens. On a CPU, rounds go on until this is certain. Elsewhere and in exported programs,
    which must not wait for the data, there are at most 8 rounds: if more were needed, the merges
    that lack are made by giving clusters to their nearest one of lower token, lowest first.

    Args:
        features: `[B, N, F]`. For unit vectors the distance is twice that of the cosine.
        k: how many clusters, 1..N.
        linkage: "average", "complete" or "single" of the distances between tokens, or "ward", what
            the merge adds to the sum of squared distances to the means.
        sizes: how many equal tokens, merged already, each one stands for `[B, N]`, > 0; None: 1.
    """
    if kernels.better_opaque(features):
        labels: Tensor = _labels_op(features, k, linkage, sizes)
        return labels
    batch, tokens, _ = features.shape
    own = torch.arange(tokens, device=features.device).expand(batch, tokens)
    if k == tokens:
        return own
    at_will = features.device.type == "cpu" and not torch.compiler.is_compiling()
    with torch.no_grad():
        merges = _merge(features, own, tokens - k, linkage, sizes, at_will=at_will)
        return _cut(merges, own, tokens - k)


def _merge(
    features: Tensor,
    own: Tensor,
    wanted: int,
    linkage: Linkage,
    sizes: Tensor | None,
    *,
    at_will: bool,
) -> _Merges:
    """At least the `wanted` merges of least height; `at_will` as many rounds as that takes."""
    distances = kernels.pairwise_distances(features)
    distances.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    ones = torch.ones_like(distances[:, 0])
    sizes = ones if sizes is None else sizes.to(ones.dtype)
    left = _Clusters(distances, own, sizes, torch.zeros_like(ones))
    merges = _Merges(own, torch.full_like(ones, torch.inf), torch.zeros_like(own))
    for turn in range(wanted if at_will else min(wanted, _ROUNDS)):
        near, nearest = _nearest(left, linkage)
        place = torch.arange(near.shape[1], device=near.device)
        # What is no lower than the last of the lowest `wanted` merges known is not among them.
        mutual = (nearest.gather(1, nearest) == place) & (near < _bar(merges, wanted))
        lower, higher = mutual & (place < nearest), mutual & (place > nearest)
        height = torch.maximum(near, left.heights)
        height = torch.maximum(height, left.heights.gather(1, nearest))
        merges = _noted(merges, left, higher, nearest, height, turn)
        bar = _bar(merges, wanted)
        useful = torch.where(mutual, lower & (height < bar), near < bar)
        index = place.expand_as(nearest)
        if at_will:
            count = int(useful.sum(-1).max())
            if count < 2:
                return merges
            index = useful.int().argsort(dim=-1, descending=True, stable=True)[:, :count]
            index = index.sort(dim=-1).values
        left = _joined(left, index, lower, nearest, height, useful, linkage)
    if not at_will and wanted > _ROUNDS:
        near, nearest = _nearest(left, linkage, lower_only=True)
        height = torch.maximum(near, left.heights)
        height = torch.maximum(height, left.heights.gather(1, nearest))
        merges = _noted(merges, left, near < torch.inf, nearest, height, _ROUNDS)
    return merges


def _nearest(
    left: _Clusters, linkage: Linkage, *, lower_only: bool = False
) -> tuple[Tensor, Tensor]:
    """The height of merging each cluster with its nearest one (of lower token), and that one."""
    cost, sizes = left.distances, left.sizes
    if linkage == "ward":
        own, other = sizes.unsqueeze(2), sizes.unsqueeze(1)
        cost = cost * (own * other / (own + other))
    if lower_only:
        later = torch.ones(cost.shape[1:], dtype=torch.bool, device=cost.device).triu()
        cost = cost.masked_fill(later, torch.inf)
    near, nearest = cost.min(-1)
    return near, nearest


def _bar(merges: _Merges, wanted: int) -> Tensor:
    """The height `[B, 1]` of the last of the lowest `wanted` merges known; infinite if too few."""
    return merges.heights.topk(wanted, largest=False).values.amax(-1, keepdim=True)


def _noted(
    merges: _Merges, left: _Clusters, ended: Tensor, nearest: Tensor, height: Tensor, turn: int
) -> _Merges:
    """The merges with those of one round, in which the clusters `ended` went to their nearest."""
    ids = left.ids
    into = torch.where(ended, ids.gather(1, nearest), merges.into.gather(1, ids))
    heights = torch.where(ended, height, merges.heights.gather(1, ids))
    rounds = torch.where(ended, turn, merges.rounds.gather(1, ids))
    return _Merges(
        merges.into.scatter(1, ids, into),
        merges.heights.scatter(1, ids, heights),
        merges.rounds.scatter(1, ids, rounds),
    )


def _joined(
    left: _Clusters,
    index: Tensor,
    lower: Tensor,
    nearest: Tensor,
    height: Tensor,
    useful: Tensor,
    linkage: Linkage,
) -> _Clusters:
    """The clusters `index [B, m]` after those of `lower` took in their nearest ones.

    By the recurrences of Lance and Williams (1967), first for the rows of all pairs, then for their
    columns. A cluster that takes in none is joined with itself, which changes nothing.
    """
    distances, size = left.distances, left.distances.shape[1]
    partner = torch.where(lower, nearest, torch.arange(size, device=nearest.device))
    between = distances.gather(2, nearest.unsqueeze(2)).squeeze(2)
    between = torch.where(lower, between, 0).gather(1, index)
    partner = partner.gather(1, index)
    own, other = left.sizes.gather(1, index), left.sizes.gather(1, partner)
    share = (own / (own + other)).unsqueeze(2)
    shift = share * (1 - share) * between.unsqueeze(2) if linkage == "ward" else None
    both = kernels.flat_index(index, size), kernels.flat_index(partner, size)
    for _ in range(2):
        rows, others = (distances.flatten(0, 1).index_select(0, part) for part in both)
        shape = (*index.shape, distances.shape[2])
        rows, others = rows.view(shape), others.view(shape)
        if linkage == "complete":
            rows = torch.maximum(rows, others)
        elif linkage == "single":
            rows = torch.minimum(rows, others)
        else:
            rows = rows * share + others * (1 - share)
            rows = rows if shift is None else rows - shift
        distances = rows.transpose(1, 2)
    # Rows before columns and columns before rows are rounded differently.
    distances = (distances + distances.transpose(1, 2)) / 2
    gone = ~useful.gather(1, index)
    itself = torch.eye(index.shape[1], dtype=torch.bool, device=index.device)
    distances = distances.masked_fill(gone.unsqueeze(2) | gone.unsqueeze(1) | itself, torch.inf)
    took = lower.gather(1, index)
    return _Clusters(
        distances,
        left.ids.gather(1, index),
        torch.where(took, own + other, own),
        torch.where(took, height.gather(1, index), left.heights.gather(1, index)),
    )


def _cut(merges: _Merges, own: Tensor, wanted: int) -> Tensor:
    """Labels `[B, N]` after the `wanted` merges of least height."""
    # A merge is never lower than one within its parts, and found in a later round.
    order = merges.rounds.argsort(dim=-1, stable=True)
    order = order.gather(1, merges.heights.gather(1, order).argsort(dim=-1, stable=True))
    chosen = order[:, :wanted]
    leader = own.scatter(1, chosen, merges.into.gather(1, chosen))
    # Each step doubles how far up a chain of merges a token looks.
    for _ in range(wanted.bit_length()):
        leader = leader.gather(1, leader)
    label = (leader == own).cumsum(-1) - 1
    # Clamped for tokens that are not finite: they are never merged, and too many are left.
    return label.gather(1, leader).clamp_max(own.shape[1] - wanted - 1)


@torch.library.custom_op("tokenpool::agglomerative_labels", mutates_args=())
def _labels_op(features: Tensor, k: int, linkage: str, sizes: Tensor | None) -> Tensor:
    """`agglomerative_labels` as one operator, which may look at the data."""
    return agglomerative_labels(features, k, linkage, sizes).contiguous()  # type: ignore[arg-type]


@_labels_op.register_fake
def _(features: Tensor, k: int, linkage: str, sizes: Tensor | None) -> Tensor:
    return features.new_empty(features.shape[:2], dtype=torch.long)
