"""Token merging by bipartite soft matching."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tokenpool.clustering import gather_tokens, work_dtype
from tokenpool.methods.base import Grid, Pooled, PoolingMethod, TokenSet
from tokenpool.options import PoolOptions

__all__ = ["ToMe"]


class ToMe(PoolingMethod):
    """Merge the N − k most similar pairs between two alternating sets (ToMe, arXiv 2210.09461).

    Similarity is the cosine of the head-mean keys; merged tokens are means weighted by the number
    of original tokens; attention is proportional unless switched off. A step can at most halve the
    tokens: where a schedule asks for fewer, `realise` tells what is left. Only patch tokens are
    split; published ToMe has the class token in one of the sets, and pools between attention and
    MLP, which here is `position="attention"`.
    """

    name = "tome"
    summary = "merges the most similar pairs"
    proportional = True
    needs_sizes = True
    scores_for = "nothing"
    own_features = "keys"
    fixed_features = True

    def realise(self, tokens: int, k: int, grid: Grid | None) -> tuple[int, Grid | None]:
        """At least half the tokens stay."""
        return max(min(k, tokens), tokens - tokens // 2), None

    def reduce(self, given: TokenSet, k: int, options: PoolOptions) -> Pooled:
        """Match, then average the matched; the unmatched first, in order, then the second set."""
        x, sizes = given.tokens, given.sizes
        batch, tokens, width = x.shape
        if sizes is None:
            sizes = x.new_ones(batch, tokens, dtype=torch.float32)
        merged = tokens - k
        with torch.no_grad():
            keys = F.normalize(given.features.to(work_dtype(given.features)), dim=-1)
            with torch.autocast(x.device.type, enabled=False):
                similarity = torch.bmm(keys[:, ::2], keys[:, 1::2].transpose(1, 2))
            best, partner = similarity.max(-1)
            order = best.argsort(dim=-1, descending=True, stable=True)
            source, stay = order[:, :merged], order[:, merged:].sort(dim=-1).values
            target = partner.gather(1, source)
            left = stay.shape[1]
            place = torch.arange(left, device=x.device).expand(batch, -1)
            first = (partner + left).scatter(1, stay, place)
            second = torch.arange(left, k, device=x.device).expand(batch, -1)
            assignment = torch.empty(batch, tokens, dtype=torch.long, device=x.device)
            assignment[:, ::2], assignment[:, 1::2] = first, second
        dtype = torch.promote_types(x.dtype, torch.float32)
        even, odd = x[:, ::2], x[:, 1::2].to(dtype)
        even_sizes, odd_sizes = sizes[:, ::2], sizes[:, 1::2]
        moved = even_sizes.gather(1, source).to(dtype)
        total = odd_sizes.to(dtype).scatter_add(1, target, moved)
        mass = (odd * odd_sizes.unsqueeze(-1)).scatter_add(
            1,
            target.unsqueeze(-1).expand(-1, -1, width),
            gather_tokens(even, source).to(dtype) * moved.unsqueeze(-1),
        )
        means = (mass / total.unsqueeze(-1)).to(x.dtype)
        return Pooled(torch.cat((gather_tokens(even, stay), means), 1), assignment)

    def macs(self, tokens: int, k: int, width: int, features: int, options: PoolOptions) -> int:
        """The products of the two sets' keys."""
        return (tokens - tokens // 2) * (tokens // 2) * features
