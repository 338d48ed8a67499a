"""A narrower model that inherits from a trained wider one.

The residual stream keeps its most important channels (the same ones in all layers), every block its
most important whole heads and MLP units. Importance is the norm of the weights that write to and
read from a channel, head or unit, with the gain of the norm before them. Inheriting the full width
is the identity.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tokenpool.models.architecture import build, describe
from tokenpool.pooling import check_model, pool, pooling_of

__all__ = ["channel_importance", "inherit_width"]


@torch.no_grad()
def inherit_width(model: nn.Module, width: int) -> Any:
    """A model of embedding dimension `width` made of the best parts of a wider one.

    Heads are kept whole, so `width` must be a whole number of them. The new model has the schedule,
    method, options, dtype, device and mode of the old one, which is left alone.

    Args:
        model: a trained timm ViT, pooled or not.
        width: the embedding dimension of the new model, at most that of the old one.

    Returns:
        A new timm `VisionTransformer`.

    Raises:
        ValueError: for a width that is larger, or not a whole number of heads; the message names
            the nearest that are.
    """
    check_model(model)
    vit: Any = model
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"a {type(model).__name__} cannot be narrowed: only timm's VisionTransformer can"
        )
    full, heads = vit.embed_dim, vit.blocks[0].attn.num_heads
    head = full // heads
    if not 1 <= width <= full:
        raise ValueError(f"width {width} cannot inherit from a model of width {full}")
    if width % head:
        below = max(head, width // head * head)
        advice = " or ".join(str(w) for w in sorted({below, below + head}) if w <= full)
        raise ValueError(f"width {width} is not a whole number of heads of {head}: use {advice}")
    if getattr(vit, "attn_pool", None) is not None:
        raise ValueError("a model with an attention-pooling head cannot be narrowed")
    described = describe(model)
    described.update(embed_dim=width, num_heads=width // head)
    narrow = build(described, device="meta")
    channels = _best(channel_importance(vit), width)
    state = {name: _cut(name, value, channels) for name, value in vit.state_dict().items()}
    for index, (wide, slim) in enumerate(zip(vit.blocks, narrow.blocks, strict=True)):
        _cut_block(f"blocks.{index}.", wide, slim, channels, head, state)
    # The state still has the old width where nothing cut it: strict loading would name it.
    narrow.load_state_dict(state, strict=True, assign=True)
    for (_, ours), (_, theirs) in zip(
        narrow.named_parameters(), vit.named_parameters(), strict=True
    ):
        ours.requires_grad_(theirs.requires_grad)
    narrow.train(vit.training)
    for name in ("pretrained_cfg", "default_cfg"):
        if hasattr(vit, name):
            setattr(narrow, name, getattr(vit, name))
    pooling = pooling_of(model)
    if pooling is not None:
        pool(narrow, pooling.schedule, pooling.method, **pooling.options.as_dict())
    return narrow


def channel_importance(model: nn.Module) -> Tensor:
    """Sum of squared weights that write to and read from each residual channel, `[width]`.

    Every matrix is scaled to the same sum first, so that large ones do not decide alone; those that
    read count with the gain of the norm in front of them.
    """
    vit: Any = model
    total = torch.zeros(vit.embed_dim, dtype=torch.double)

    def add(matrix: Tensor) -> None:
        squares = matrix.detach().double().cpu().square().sum(1)
        total.add_(squares / squares.sum().clamp_min(1e-30))

    add(vit.patch_embed.proj.weight.flatten(1))
    for block in vit.blocks:
        add(block.attn.proj.weight)
        add(block.mlp.fc2.weight)
        add(block.attn.qkv.weight.T * _gain(block.norm1))
        add(block.mlp.fc1.weight.T * _gain(block.norm2))
    if isinstance(vit.head, nn.Linear):
        last = vit.norm if not isinstance(vit.norm, nn.Identity) else vit.fc_norm
        add(vit.head.weight.T * _gain(last))
    return total


def _gain(norm: nn.Module) -> Tensor | float:
    weight = getattr(norm, "weight", None)
    return 1.0 if weight is None else weight.detach().unsqueeze(1)


def _best(importance: Tensor, count: int) -> Tensor:
    """The indices of the largest, ascending, so that all of them are in their old order."""
    return importance.argsort(descending=True, stable=True)[:count].sort().values


def _cut(name: str, value: Tensor, channels: Tensor) -> Tensor:
    """A tensor outside the blocks with its residual channels cut; blocks come after."""
    if name.startswith("blocks."):
        return value
    channels = channels.to(value.device)
    if name.startswith("patch_embed.proj"):
        return value.index_select(0, channels).clone()
    # Embeddings, tokens, norms and heads all have the channels last; a head's bias has none.
    if name in ("head.bias", "head_dist.bias"):
        return value.clone()
    return value.index_select(value.dim() - 1, channels).clone()


def _cut_block(
    prefix: str, wide: Any, slim: Any, channels: Tensor, head: int, state: dict[str, Tensor]
) -> None:
    """Cut one block: residual channels, whole heads, MLP units."""
    device = wide.attn.qkv.weight.device
    channels = channels.to(device)
    heads = wide.attn.num_heads
    qkv = wide.attn.qkv.weight.detach().double().view(3, heads, head, -1)
    out = wide.attn.proj.weight.detach().double().view(-1, heads, head)
    # What a head passes on is bounded by its values times its output.
    strength = qkv[2].square().sum((1, 2)) * out.square().sum((0, 2))
    kept_heads = _best(strength, slim.attn.num_heads)
    inner = (kept_heads.unsqueeze(1) * head + torch.arange(head, device=device)).flatten()
    rows = torch.cat([inner + part * heads * head for part in range(3)])
    fc1, fc2 = wide.mlp.fc1.weight.detach().double(), wide.mlp.fc2.weight.detach().double()
    units = _best(
        fc1[:, channels].square().sum(1) * fc2[channels].square().sum(0), slim.mlp.fc1.out_features
    )
    # (rows, columns) of every matrix or vector; None takes all.
    cuts: dict[str, tuple[Tensor | None, Tensor | None]] = {
        "attn.qkv": (rows, channels),
        "attn.proj": (channels, inner),
        "attn.norm": (inner, None),
        "mlp.fc1": (units, channels),
        "mlp.norm": (units, None),
        "mlp.fc2": (channels, units),
        "norm1": (channels, None),
        "norm2": (channels, None),
        "ls1": (channels, None),
        "ls2": (channels, None),
    }
    for name in [key for key in state if key.startswith(prefix)]:
        part = name.removeprefix(prefix).rpartition(".")[0]
        # The norms of queries and keys are as wide as a head, and heads stay whole.
        first, second = cuts.get(part, (None, None))
        value = state[name]
        if first is not None:
            value = value.index_select(0, first)
        if second is not None and value.dim() == 2:
            value = value.index_select(1, second)
        state[name] = value.detach().clone()
