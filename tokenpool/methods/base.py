"""What a pooling method is: one strategy object without state, chosen by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

from torch import Tensor

from tokenpool.options import PoolOptions

__all__ = ["Grid", "Pooled", "PoolingMethod", "TokenSet"]

Grid = tuple[int, int]


class TokenSet(NamedTuple):
    """What a method may look at: the patch tokens of one block, without prefix tokens.

    Attributes:
        tokens: the tokens `[B, N, C]`, differentiable.
        features: what is compared `[B, N, F]`: the tokens, or means over heads of keys (and
            queries); detached.
        scores: significance `[B, N]`, or None if the method did not ask for it.
        sizes: how many original tokens each token stands for `[B, N]`, to weigh means and errors
            by, or None where all are 1 or nobody counts. `scores` count them already.
        grid: (rows, columns) of the N tokens, for methods that keep a grid, else None.
        depth: the share of the model's blocks that come before this one.
        whole: `tokens` with the prefix tokens in front; None: there are none.
    """

    tokens: Tensor
    features: Tensor
    scores: Tensor | None
    sizes: Tensor | None
    grid: Grid | None
    depth: float = 0.0
    whole: Tensor | None = None


class Pooled(NamedTuple):
    """What a method makes of a `TokenSet`.

    Attributes:
        tokens: the new tokens `[B, k, C]`, differentiable.
        assignment: `[B, N]`, the new token each old one went into, or −1 if it was dropped.
        sizes: how many original tokens each new one stands for `[B, k]`, where the method knows;
            None: it is counted.
        whole: `tokens` with the prefix of what was given in front, where the method made them so.
        kept: the old token `[B, k]` that each new one is, where clusters are represented by one of
            their own; None: by means, or others were dropped.
    """

    tokens: Tensor
    assignment: Tensor
    sizes: Tensor | None = None
    whole: Tensor | None = None
    kept: Tensor | None = None


class PoolingMethod(ABC):
    """One way to turn N tokens into k; what is not set by a method is as here.

    Attributes:
        name: as in `tp.METHODS`.
        summary: one line for tables and help.
        proportional: whether proportional attention is on unless an option says otherwise.
        needs_sizes: whether it weighs tokens by how many original ones they stand for, whatever
            the options say.
        merges: whether a kept token stands for others, which count in an average and when tokens
            are given back to their places; if not, the others are dropped and count for nothing.
        needs_grid: whether it works on a whole grid of tokens and on nothing else.
        scores_for: what it needs significance for: to rank tokens, which it always does, to weigh
            means, if the options ask for weighted ones, or nothing.
        scores_optional: whether it does without significance where there is none to be had, as from
            the class token of a model without one.
        own_features: the features it looks at where the options leave it open.
        fixed_features: whether it looks at these whatever the options say.
        own_significance: where its significance comes from unless the options say otherwise.
        own_position: where it pools unless the options say otherwise.
    """

    name = ""
    summary = ""
    proportional = False
    needs_sizes = False
    merges = True
    needs_grid = False
    scores_for: Literal["ranks", "means", "nothing"] = "ranks"
    scores_optional = False
    own_features = "tokens"
    fixed_features = False
    own_significance = "received"
    own_position = "block"

    def needs_scores(self, options: PoolOptions) -> bool:
        """Whether the block has to compute the significance of its tokens."""
        weighted = self.scores_for == "means" and options.representative == "weighted_mean"
        return self.scores_for == "ranks" or weighted

    def features(self, options: PoolOptions) -> str:
        """Which features it looks at: one of `tokenpool.options.Features`."""
        return (None if self.fixed_features else options.features) or self.own_features

    def significance(self, options: PoolOptions) -> str:
        """Where its significance comes from: "received" or "cls"."""
        return options.significance or self.own_significance

    def position(self, options: PoolOptions) -> str:
        """Where it pools: after the "block" or after its "attention"."""
        return options.position or self.own_position

    def realise(self, tokens: int, k: int, grid: Grid | None) -> tuple[int, Grid | None]:
        """The count that is really kept, and the grid that the kept tokens form.

        Args:
            tokens: how many come in.
            k: how many are asked for.
            grid: (rows, columns) of those that come in, or None.
        """
        return min(k, tokens), None

    @abstractmethod
    def reduce(self, given: TokenSet, k: int, options: PoolOptions) -> Pooled:
        """Turn N tokens into k.

        Args:
            given: the tokens, and what the method asked for.
            k: a count that `realise` gave, less than N.
            options: the options the model is pooled with.
        """

    def macs(self, tokens: int, k: int, width: int, features: int, options: PoolOptions) -> int:
        """Multiply-accumulates of the matrix products that `reduce` makes for one image.

        By default those of the products of all pairs, N²·F; sums and comparisons do not count.

        Args:
            tokens: how many come in.
            k: how many are kept.
            width: channels of the tokens.
            features: channels of the features.
            options: the options the model is pooled with.
        """
        return tokens * tokens * features
