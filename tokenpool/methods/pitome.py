"""Token merging that protects the tokens least like the others: PiToMe."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenpool.clustering import gather_tokens, work_dtype
from tokenpool.methods.base import Grid, Pooled, PoolingMethod, TokenSet
from tokenpool.methods.represent import cluster_means, mean_weights
from tokenpool.options import PoolOptions

__all__ = ["PiToMe", "energy"]

# Of the cosine, in the first block; it falls in proportion to depth.
_MARGIN = 0.9


class PiToMe(PoolingMethod):
    """Merge tokens with many near neighbours, protect the others (PiToMe, NeurIPS 2024).

    Tokens are ranked by their energy (`energy`) and every other one goes to the most similar of
    those between: so two alike, which have like energies, are on different sides. In the first half
    of the layers the N − k most similar pairs of all tokens are merged; in the second only the
    2·(N − k) tokens of highest energy take part, and those of low energy, which few others are
    like, stay.

    Similarity is the cosine of the head-mean keys; merged tokens are means weighted by the number
    of original tokens; attention is proportional; tokens are pooled between attention and MLP. This
    is what the authors' code does. Protecting in all layers, and the cosine itself above the
    margin, as the paper's text may be read, lost four times as much on DINOv2-S.

    A step can at most halve the tokens: where a schedule asks for fewer, `realise`
    tells what is left. Prefix tokens are left out.
    """

    name = "pitome"
    summary = "merges the most similar pairs of tokens that have many neighbours"
    proportional = True
    needs_sizes = True
    scores_for = "means"
    own_features = "keys"
    own_position = "attention"

    def realise(self, tokens: int, k: int, grid: Grid | None) -> tuple[int, Grid | None]:
        """At least half the tokens stay."""
        return max(min(k, tokens), tokens - tokens // 2), None

    def reduce(self, given: TokenSet, k: int, options: PoolOptions) -> Pooled:
        """Rank by energy, match, average; the tokens left keep their order."""
        tokens = given.tokens.shape[1]
        merged = tokens - k
        with torch.no_grad():
            features = given.features.to(work_dtype(given.features))
            features = F.normalize(features, dim=-1)
            with torch.autocast(features.device.type, enabled=False):
                cosine = torch.bmm(features, features.transpose(1, 2))
            margin = _MARGIN * (1 - given.depth)
            order = energy(cosine, margin).argsort(dim=-1, descending=True, stable=True)
            taking_part = tokens if given.depth < 0.5 else 2 * merged
            source, target = order[:, :taking_part:2], order[:, 1:taking_part:2]
            between = gather_tokens(cosine, source)
            between = between.gather(2, target.unsqueeze(1).expand(-1, source.shape[1], -1))
            best, partner = between.max(-1)
            closest = best.argsort(dim=-1, descending=True, stable=True)[:, :merged]
            source, partner = source.gather(1, closest), partner.gather(1, closest)
            partner = target.gather(1, partner)
            place = torch.ones_like(order).scatter(1, source, 0).cumsum(-1) - 1
            assignment = place.scatter(1, source, place.gather(1, partner))
            stays = torch.ones_like(order).scatter(1, source, 0)
            kept = stays.argsort(dim=-1, descending=True, stable=True)[:, :k]
        if options.representative == "medoid":
            return Pooled(gather_tokens(given.tokens, kept), assignment, kept=kept)
        weights = mean_weights(given, options.representative)
        return Pooled(cluster_means(given.tokens, assignment, k, weights), assignment)


def energy(cosine: Tensor, margin: float) -> Tensor:
    """How much company each token has `[B, N]`, from the cosines `[B, N, N]` of all pairs.

    The mean of f(cosine) over all tokens, with f(x) = x − margin above the margin, else
    exp(x − margin) − 1, which hardly tells apart what is far.
    """
    return F.elu(cosine - margin).mean(-1)
