"""Dense features of a pooled model: timm's intermediate maps with every patch in its place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokenpool.attention import check_pooled
from tokenpool.vit import SizedTokens

__all__ = ["DenseIntermediates", "give_dense_features", "take_dense_features"]


class DenseIntermediates:
    """timm's `forward_intermediates` (and what calls it) of a pooled model.

    Whatever a block leaves is given back to all the patches it stands for, also by the methods that
    drop tokens (a dropped one is given the kept one nearest to it), so that maps and token lists
    have the shapes of the unpooled model. Gradients are not checkpointed on the way.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What timm's `forward_intermediates` gives; the arguments are passed on to it."""
        kind: Any = type(self.model)
        return kind.forward_intermediates(_Spreading(self.model), *args, **kwargs)


class _Spreading:
    """Stands for the model while timm goes through its blocks.

    timm keeps what a block leaves and hands it to the next; here the next is given the pooled
    tokens that the block really left, and timm keeps them spread over the patches.
    """

    grad_checkpointing = False

    def __init__(self, model: nn.Module) -> None:
        check_pooled(model)
        vit: Any = model
        self.model = vit
        self.left: SizedTokens | None = None
        self.blocks = [_SpreadingBlock(self, block) for block in vit.blocks]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


class _SpreadingBlock:
    """One block of `_Spreading`."""

    def __init__(self, owner: _Spreading, block: Any) -> None:
        self.owner, self.block = owner, block

    def __call__(self, x: Tensor, **kwargs: Any) -> Tensor:
        prefix: int = self.owner.model.num_prefix_tokens
        batch, count, _ = x.shape
        entered = self.owner.left
        if entered is None:
            place = torch.arange(count - prefix, device=x.device).expand(batch, -1)
            entered = SizedTokens(x, None, place, keep=True)
        left: SizedTokens = self.block(entered, **kwargs)
        self.owner.left = left
        return left.tokens if left.tokens.shape[1] == count else left.spread(prefix)


def give_dense_features(model: nn.Module) -> None:
    """Let the model's `forward_intermediates` give full maps, unless it has its own already."""
    if "forward_intermediates" not in model.__dict__:
        model.__dict__["forward_intermediates"] = DenseIntermediates(model)


def take_dense_features(model: nn.Module) -> None:
    """Give the model timm's own `forward_intermediates` again."""
    if isinstance(model.__dict__.get("forward_intermediates"), DenseIntermediates):
        del model.__dict__["forward_intermediates"]
