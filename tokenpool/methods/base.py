"""What a pooling method is: one strategy object without state, chosen by name."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from tokenpool.options import PoolOptions

__all__ = ["METHODS", "Grid", "Pooled", "PoolingMethod", "Reducer", "method", "register_method"]

Grid = tuple[int, int]


class TokenSet(NamedTuple):
    """What a method may look at: the patch tokens of one block, without prefix tokens.

    Attributes:
        tokens: `[B, N, C]`, differentiable.
        features: `[B, N, F]`, what is clustered: the tokens or the head-mean keys, detached.
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
        tokens: `[B, k, C]`, differentiable.
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


class PoolingMethod(Protocol):
    """One way to turn N tokens into k.

    Attributes:
        name: as in `tp.METHODS`.
        summary: one line for tables and help.
        proportional: whether proportional attention is on unless an option says otherwise.
        needs_sizes: whether it weighs tokens by how many original ones they stand for, whatever
            the options say.
        merges: whether a kept token stands for others, which count in an average and when tokens
            are given back to their places; if not, the others are dropped and count for nothing.
        needs_grid: whether it works on a whole grid of tokens and on nothing else.
        scores_optional: whether it does without significance where there is none to be had, as from
            the class token of a model without one.
    """

    name: str
    summary: str
    proportional: bool
    needs_sizes: bool
    merges: bool
    needs_grid: bool
    scores_optional: bool

    def needs_scores(self, options: PoolOptions) -> bool:
        """Whether the block has to compute the significance of its tokens."""
        ...

    def features(self, options: PoolOptions) -> str:
        """Which features it looks at: one of `tokenpool.options.Features`."""
        ...

    def significance(self, options: PoolOptions) -> str:
        """Where its significance comes from: "received" or "cls"."""
        ...

    def position(self, options: PoolOptions) -> str:
        """Where it pools: after the "block" or after its "attention"."""
        ...

    def realise(self, tokens: int, k: int, grid: Grid | None) -> tuple[int, Grid | None]:
        """The count it really keeps of `tokens` when asked for k, and the grid they form."""
        ...

    def reduce(self, given: TokenSet, k: int, options: PoolOptions) -> Pooled:
        """Turn N tokens into k (a count that `realise` gave, less than N)."""
        ...

    def macs(self, tokens: int, k: int, width: int, features: int, options: PoolOptions) -> int:
        """Multiply-accumulates of the matrix products `reduce` makes for one image."""
        ...


class Reducer:
    """Defaults shared by the methods: any k is realised, nothing is multiplied."""

    name = ""
    summary = ""
    proportional = False
    needs_sizes = False
    merges = True
    needs_grid = False
    scores_optional = False
    # What the options leave open.
    own_features: str = "tokens"
    own_significance: str = "received"
    own_position: str = "block"

    def needs_scores(self, options: PoolOptions) -> bool:
        """Most methods rank or start from the significance."""
        return True

    def features(self, options: PoolOptions) -> str:
        """Selection does not look at features, whatever the options say."""
        return self.own_features

    def significance(self, options: PoolOptions) -> str:
        """What the options say, or the method's own."""
        return options.significance or self.own_significance

    def position(self, options: PoolOptions) -> str:
        """What the options say, or the method's own."""
        return options.position or self.own_position

    def realise(self, tokens: int, k: int, grid: Grid | None) -> tuple[int, Grid | None]:
        """Any count can be kept; the grid is lost."""
        return min(k, tokens), None

    def macs(self, tokens: int, k: int, width: int, features: int, options: PoolOptions) -> int:
        """Selection multiplies nothing."""
        return 0


METHODS: dict[str, PoolingMethod] = {}


def register_method(strategy: PoolingMethod) -> PoolingMethod:
    """Make a method available to `tp.pool` under its name."""
    METHODS[strategy.name] = strategy
    return strategy


def method(name: str) -> PoolingMethod:
    """The method of that name.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    if name not in METHODS:
        raise ValueError(f"there is no pooling method {name!r}: use one of {', '.join(METHODS)}")
    return METHODS[name]
