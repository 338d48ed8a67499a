"""Methods that keep some tokens and drop the others."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpool.clustering import gather_tokens, top_indices
from tokenpool.methods.base import Pooled, PoolingMethod, TokenSet
from tokenpool.options import PoolOptions

__all__ = ["Importance", "PowerBert", "Random"]


class _Selection(PoolingMethod):
    """A token that is kept stands for itself alone, also in a head that averages over patches."""

    merges = False
    fixed_features = True

    def macs(self, tokens: int, k: int, width: int, features: int, options: PoolOptions) -> int:
        """Selection multiplies nothing."""
        return 0


class PowerBert(_Selection):
    """Keep the k tokens of highest significance (PoWER-BERT, arXiv 2001.08950)."""

    name = "powerbert"
    summary = "keeps the k most significant tokens"

    def reduce(self, given: TokenSet, k: int, options: PoolOptions) -> Pooled:
        """Top k by significance, in their old order; ties go to the lowest index."""
        assert given.scores is not None
        return _keep(given, top_indices(given.scores.detach(), k))


class Importance(_Selection):
    """Draw k tokens without replacement, with probability proportional to significance.

    Successive sampling as top k of log(score) + Gumbel noise (Efraimidis and Spirakis), one draw
    per image; takes `options.generator`.
    """

    name = "importance"
    summary = "draws k tokens by significance"

    def reduce(self, given: TokenSet, k: int, options: PoolOptions) -> Pooled:
        """A weighted draw without replacement."""
        assert given.scores is not None
        scores = given.scores.detach().float()
        keys = scores.clamp_min(1e-30).log() - _exponential_like(scores, options).log()
        return _keep(given, top_indices(keys, k))


class Random(_Selection):
    """Draw k tokens uniformly without replacement; takes `options.generator`."""

    name = "random"
    summary = "draws k tokens uniformly"
    scores_for = "nothing"

    def reduce(self, given: TokenSet, k: int, options: PoolOptions) -> Pooled:
        """A uniform draw without replacement, one per image."""
        return _keep(given, top_indices(_exponential_like(given.tokens[..., 0], options), k))


def _exponential_like(values: Tensor, options: PoolOptions) -> Tensor:
    """Exponential noise in fp32, shaped like `values`."""
    uniform = torch.rand(
        values.shape, dtype=torch.float32, device=values.device, generator=options.generator
    )
    return torch.log1p(-uniform).neg().clamp_min(1e-30)


def _keep(given: TokenSet, index: Tensor) -> Pooled:
    """Those tokens; the others belong to none."""
    dropped = torch.full(given.tokens.shape[:2], -1, dtype=torch.long, device=index.device)
    own = torch.arange(index.shape[1], device=index.device).expand_as(index)
    return Pooled(gather_tokens(given.tokens, index), dropped.scatter(1, index, own))
