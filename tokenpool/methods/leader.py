"""Leader clustering with a given number of clusters: the default method."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenpool import gpu
from tokenpool.clustering import work_dtype
from tokenpool.kernels import flat_index
from tokenpool.methods.base import Pooled, PoolingMethod, TokenSet
from tokenpool.options import PoolOptions

__all__ = ["Leader"]

# The power of its significance that a token's novelty is weighed by: 0 looks at likeness alone, 1
# keeps what the class token looks at and little else. Seen on DINOv2-S: 0.25 and 0.5 are alike, 1
# loses a third.
_POWER = 0.5


class Leader(PoolingMethod):
    """Keep the k tokens that are least like any more significant one; the others join the nearest.

    Leader clustering (Hartigan 1975, chapter 3) with k in place of a radius. Likeness is the cosine
    of the head-mean queries and keys side by side: tokens alike in both are read alike and read
    others alike. A token's novelty is its distance to the nearest token that the class token
    attends to more, times the square root of its own share of that attention; the k of greatest
    novelty lead. Without a class token the lower index goes first and novelty is the distance.

    Clusters are represented by the mean of their tokens, weighted by how many original ones each
    stands for; attention is proportional to size; tokens are pooled between attention and MLP, as
    in ToMe (arXiv 2210.09461). One product, one ranking and two reductions a layer, whatever k.
    The result does not depend on the order of the tokens, but for ties.
    """

    name = "leader"
    summary = "keeps the k tokens least like a more significant one, as means"
    proportional = True
    needs_sizes = True
    own_features = "queries_keys"
    own_significance = "cls"
    own_position = "attention"
    scores_optional = True

    def reduce(self, given: TokenSet, k: int, options: PoolOptions) -> Pooled:
        """Rank by novelty, let the others join, average."""
        x, features, scores = given.tokens, given.features, given.scores
        weights = given.scores if options.representative == "weighted_mean" else given.sizes
        if options.representative != "medoid" and gpu.usable(x.shape[1], x, features):
            return Pooled(*gpu.leader(x, features, scores, weights, k))
        # Rows of all images are taken by one index: several times faster than by one an image.
        start = torch.arange(x.shape[0], device=x.device).unsqueeze(1) * x.shape[1]
        with torch.no_grad():
            features = features.to(work_dtype(features))
            features = features / features.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            if scores is not None:
                # By significance, so that one constant mask tells who goes before whom.
                scores, ranked = scores.sort(dim=-1, descending=True, stable=True)
                features = _rows(features, ranked + start)
            with torch.autocast(x.device.type, enabled=False):
                similarity = torch.bmm(features, features.transpose(1, 2))
            order = novelty(similarity, scores).argsort(dim=-1, descending=True, stable=True)
            kept, dropped = order[:, :k], order[:, k:]
            likeness = _rows(similarity, dropped + start)
            likeness = likeness.gather(2, kept.unsqueeze(1).expand(-1, dropped.shape[1], -1))
            target = likeness.argmax(-1)
            if scores is not None:
                order = ranked.gather(1, order)
            own = torch.arange(k, device=x.device).expand_as(kept)
            assignment = torch.empty_like(order).scatter(1, order, torch.cat((own, target), 1))
        if options.representative == "medoid":
            return Pooled(_rows(x, order[:, :k] + start), assignment, kept=order[:, :k])
        dtype = work_dtype(x)
        if weights is None:
            weights = torch.ones(order.shape, dtype=dtype, device=x.device)
        else:
            weights = weights.to(dtype).gather(1, order)
        if options.representative == "weighted_mean":
            weights = weights.clamp_min(1e-30)
        whole = None
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            everything = x if given.whole is None else given.whole
            whole, sums = _means_in_place(everything, order, weights, target)
            means = whole[:, whole.shape[1] - k :]
        else:
            means, sums = _means(_rows(x, order + start), weights, target)
        sizes = None if options.representative == "weighted_mean" else sums
        return Pooled(means, assignment, sizes, whole)


def novelty(similarity: Tensor, scores: Tensor | None) -> Tensor:
    """How unlike each token is to the nearest of those before it, `[B, N]`; infinite for the first.

    Args:
        similarity: cosines `[B, N, N]`.
        scores: the significance `[B, N]`, ≥ 0, whose square root weighs it; None: all alike.
    """
    tokens = similarity.shape[1]
    after = similarity.new_full((tokens, tokens), -torch.inf).triu()
    distance = (1 - (similarity + after).amax(-1)).clamp_min(0)
    if scores is not None:
        # Never quite zero: nothing times infinity has no place in an order.
        distance = distance * scores.to(distance.dtype).clamp_min(1e-30).pow(_POWER)
    return distance


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index [B, n]`, counted through all images, of `x [B, N, C]`, as `[B, n, C]`."""
    return F.embedding(index, x.flatten(0, 1))


def _means(x: Tensor, weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted means `[B, k, C]` of those kept and those that joined them, and sums of weights.

    Args:
        x: the tokens `[B, N, C]`, those that are kept in front.
        weights: how much each token counts `[B, N]`, > 0, in the same order.
        target: which of those kept each of the others joins `[B, N − k]`.
    """
    k = x.shape[1] - target.shape[1]
    ours, theirs = weights[:, :k], weights[:, k:]
    # Adding row by row would be atomic here, and so vary from run to run.
    joins = target.unsqueeze(1) == torch.arange(k, device=x.device).unsqueeze(1)
    joined = joins * theirs.unsqueeze(1)
    sums = ours + joined.sum(-1)
    with torch.autocast(x.device.type, enabled=False):
        kept, others = x[:, :k].to(weights.dtype), x[:, k:].to(weights.dtype)
        means = torch.baddbmm(kept * (ours / sums).unsqueeze(2), joined / sums.unsqueeze(2), others)
    return means.to(x.dtype), sums


def _means_in_place(
    x: Tensor, order: Tensor, weights: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """As `_means`, after the prefix tokens `[B, P + k, C]`: each token is copied once and no more.

    Args:
        x: all tokens `[B, P + N, C]`.
        order: the patch tokens `[B, N]`, the k that are kept in front.
        weights: how much each patch token counts `[B, N]`, > 0, in this order.
        target: which of those kept each of the others joins `[B, N − k]`.
    """
    batch, patches = order.shape
    dropped = target.shape[1]
    k, prefix = patches - dropped, x.shape[1] - patches
    ours, theirs = weights[:, :k], weights[:, k:]
    sums = ours.scatter_add(1, target, theirs)
    share = (theirs / sums.gather(1, target)).unsqueeze(2)
    start = torch.arange(batch).unsqueeze(1) * x.shape[1]
    front = torch.arange(prefix).expand(batch, -1)
    place = torch.cat((front, order + prefix), 1) + start
    kept = _rows(x, place[:, : prefix + k]).to(weights.dtype)
    # A mean is its first token, moved towards each of the others.
    into = flat_index(target + prefix, prefix + k)
    flat = kept.flatten(0, 1)
    others = _rows(x, place[:, prefix + k :]).to(weights.dtype).flatten(0, 1)
    moves = (others - flat.index_select(0, into)) * share.flatten(0, 1)
    return flat.index_add_(0, into, moves).view_as(kept).to(x.dtype), sums
