"""Leader clustering with a given number of clusters: the default method."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenpool import gpu
from tokenpool.clustering import gather_tokens, work_dtype
from tokenpool.methods.base import Pooled, Reducer, TokenSet
from tokenpool.options import PoolOptions

__all__ = ["Leader"]

# The power of its significance that a token's novelty is weighed by: 0 looks at likeness alone, 1
# keeps what the class token looks at and little else. Seen on DINOv2-S: 0.25 and 0.5 are alike, 1
# loses a third.
_POWER = 0.5


class Leader(Reducer):
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

    def features(self, options: PoolOptions) -> str:
        """What the options say, or the method's own."""
        return options.features or self.own_features

    def reduce(self, given: TokenSet, k: int, options: PoolOptions) -> Pooled:
        """Rank by novelty, let the others join, average."""
        x, features, scores = given.tokens, given.features, given.scores
        weights = given.scores if options.representative == "weighted_mean" else given.sizes
        if options.representative != "medoid" and gpu.usable(x.shape[1], x, features):
            return Pooled(*gpu.leader(x, features, scores, weights, k))
        with torch.no_grad():
            if scores is not None:
                # By significance, so that one constant mask tells who goes before whom.
                ranked = scores.argsort(dim=-1, descending=True, stable=True)
                features, scores = gather_tokens(features, ranked), scores.gather(1, ranked)
            features = F.normalize(features.to(work_dtype(features)), dim=-1)
            with torch.autocast(x.device.type, enabled=False):
                similarity = torch.bmm(features, features.transpose(1, 2))
            order = novelty(similarity, scores).argsort(dim=-1, descending=True, stable=True)
            kept, dropped = order[:, :k], order[:, k:]
            rows = gather_tokens(similarity, dropped)
            target = rows.gather(2, kept.unsqueeze(1).expand(-1, rows.shape[1], -1)).argmax(-1)
            if scores is not None:
                kept, dropped = ranked.gather(1, kept), ranked.gather(1, dropped)
            own = torch.arange(k, device=x.device).expand_as(kept)
            assignment = torch.empty_like(order).scatter(1, kept, own).scatter(1, dropped, target)
        if options.representative == "medoid":
            return Pooled(gather_tokens(x, kept), assignment)
        return Pooled(_means(x, weights, kept, dropped, target), assignment)

    def macs(self, tokens: int, k: int, width: int, features: int, options: PoolOptions) -> int:
        """N²·F for the similarities."""
        return tokens * tokens * features


def novelty(similarity: Tensor, scores: Tensor | None) -> Tensor:
    """How unlike each token is to the nearest of those before it, `[B, N]`; infinite for the first.

    Args:
        similarity: cosines `[B, N, N]`.
        scores: significance `[B, N]`, ≥ 0, whose square root weighs it; None: all weigh the same.
    """
    tokens = similarity.shape[1]
    after = similarity.new_full((tokens, tokens), -torch.inf).triu()
    distance = (1 - (similarity + after).amax(-1)).clamp_min(0)
    if scores is not None:
        # Never quite zero: nothing times infinity has no place in an order.
        distance = distance * scores.to(distance.dtype).clamp_min(1e-30).pow(_POWER)
    return distance


def _means(
    x: Tensor, weights: Tensor | None, kept: Tensor, dropped: Tensor, target: Tensor
) -> Tensor:
    """The weighted mean `[B, k, C]` of each kept token and those that joined it."""
    dtype = work_dtype(x)
    weights = torch.ones_like(x[..., 0]) if weights is None else weights
    weights = weights.to(dtype).clamp_min(1e-30)
    ours, theirs = weights.gather(1, kept), weights.gather(1, dropped)
    mass = gather_tokens(x, kept).to(dtype) * ours.unsqueeze(2)
    joining = gather_tokens(x, dropped).to(dtype) * theirs.unsqueeze(2)
    mass = mass.scatter_add(1, target.unsqueeze(2).expand_as(joining), joining)
    return (mass / ours.scatter_add(1, target, theirs).unsqueeze(2)).to(x.dtype)
