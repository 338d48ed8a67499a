"""Which token went where: traces of pooled models, and un-pooling by them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from tokenpool.methods.base import Pooled, TokenSet
from tokenpool.pooling import check_model
from tokenpool.vit import LayerPlan, PooledBlock, nearest_kept, spread

__all__ = ["PooledLayer", "Trace", "record", "trace", "unpool"]


class PooledLayer(NamedTuple):
    """What one pooling layer did.

    Attributes:
        block: the number of the block, from 0.
        assignment: the token, of 0..k-1, that stands for each incoming one `[B, N]`; a dropped
            token is given to the kept one nearest to it.
        kept: k, how many tokens are left.
        tokens: the tokens that came in `[B, N, C]`, if they are asked for.
        pooled: the tokens that went out `[B, k, C]`, if they are asked for.
    """

    block: int
    assignment: Tensor
    kept: int
    tokens: Tensor | None
    pooled: Tensor | None


@dataclass
class Trace:
    """The pooling layers of one forward pass, in order; layers that kept all tokens are left out.

    Attributes:
        prefix: class, distillation and register tokens in front of the patch tokens.
        layers: what each pooling layer did.
        spread: whether the model itself gives every patch its token again, after its last block,
            as its head reads patches.
    """

    prefix: int
    layers: list[PooledLayer] = field(default_factory=list)
    spread: bool = False

    def assignment(self, after: int | None = None) -> Tensor:
        """Where each original patch is `[B, N]`, after block `after` (from 0) or after the last.

        Raises:
            ValueError: if nothing was pooled by then.
        """
        place: Tensor | None = None
        for layer in self.layers:
            if after is not None and layer.block > after:
                break
            place = layer.assignment if place is None else layer.assignment.gather(1, place)
        if place is None:
            raise ValueError("no layer pooled any tokens, so there is nothing to trace")
        return place


@contextmanager
def record(model: nn.Module, *, keep_tokens: bool = False) -> Iterator[Trace]:
    """Trace the forward pass run inside (of several, the last).

    Args:
        model: a pooled model.
        keep_tokens: whether the tokens before and after each pooling are kept too.

    Raises:
        ValueError: if the model cannot be pooled.
    """
    blocks = check_model(model)
    vit: Any = model
    pooled_blocks = [block for block in blocks if isinstance(block, PooledBlock)]
    found = Trace(vit.num_prefix_tokens, spread=any(block.spreads for block in pooled_blocks))

    def observe(plan: LayerPlan, given: TokenSet, pooled: Pooled) -> None:
        if found.layers and plan.index <= found.layers[-1].block:
            found.layers.clear()
        found.layers.append(
            PooledLayer(
                plan.index,
                nearest_kept(given, pooled),
                pooled.tokens.shape[1],
                given.tokens.detach() if keep_tokens else None,
                pooled.tokens.detach() if keep_tokens else None,
            )
        )

    before = [block.observer for block in pooled_blocks]
    for block in pooled_blocks:
        block.observer = observe
    try:
        yield found
    finally:
        for block, observer in zip(pooled_blocks, before, strict=True):
            block.observer = observer


def trace(model: nn.Module, images: Tensor) -> tuple[Tensor, Trace]:
    """`forward_features` of a pooled model, and its trace.

    `[B, prefix + k, C]`, or `[B, prefix + N, C]` where the head reads patches (see `pool`).
    """
    vit: Any = model
    with record(model) as found:
        tokens: Tensor = vit.forward_features(images)
    return tokens, found


def unpool(tokens: Tensor, trace: Trace) -> Tensor:
    """Give every original position the token that stands for it: for dense tasks.

    Args:
        tokens: `[B, k, C]` patch tokens, or `[B, prefix + k, C]` with the prefix in front; k is
            what the last traced layer kept. What the model has un-pooled itself is given back.
        trace: the trace of the pass that made them.

    Returns:
        `[B, N, C]`, or `[B, prefix + N, C]` if the prefix was given; differentiable.

    Raises:
        ValueError: if the tokens are not as many as the trace ends with.
    """
    place = trace.assignment()
    kept = trace.layers[-1].kept
    count = tokens.shape[1] if tokens.dim() == 3 else -1
    whole = place.shape[1]
    if trace.spread and count in (whole, whole + trace.prefix) and len(tokens) == len(place):
        return tokens
    if count not in (kept, kept + trace.prefix) or tokens.shape[0] != place.shape[0]:
        raise ValueError(
            f"the trace ends with {place.shape[0]} images of {kept} patch tokens (and "
            f"{trace.prefix} before them), but the tokens are {list(tokens.shape)}"
        )
    return spread(tokens, place, count - kept)
