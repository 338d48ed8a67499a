"""Rotary positions that travel with tokens.

timm gives every block the sines and cosines of its patches' angles. The angles are linear in a
patch's two coordinates, whatever the kind of embedding, so a pooled model carries coordinates: a
medoid keeps its own, a mean has the mean of its members' (whose angles are the mean angles), and
each block makes sines and cosines of them by its own frequencies. Prefix tokens have no position.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tokenpool.attention import check_pooled
from tokenpool.clustering import gather_tokens
from tokenpool.methods.base import Pooled
from tokenpool.patches import patches_of

__all__ = [
    "check_rotary", "give_places", "pool_positions", "positions_of", "rotary_at", "split_places",
    "take_places",
]  # fmt: skip

# Beside timm's sines and cosines: row and column of the patch, rows and columns of the grid.
# Whole numbers, which every dtype holds exactly up to 256.
_COLUMNS = 4
_MOST = 256


class PlacedEmbed:
    """timm's `get_embed` of a rotary embedding, with the place of each patch beside its angles.

    As columns, since timm drops patches, and hands embeddings from layer to layer, as tensors.
    """

    def __init__(self, rope: nn.Module, model: nn.Module | None = None) -> None:
        self.rope, self.model = rope, model

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """timm's embedding with places `[…, N, 2·D + 4]`, but for a padded batch of many sizes.

        Raises:
            ValueError: in training, where coordinates are to be shifted or scaled at random, where
                a block of the model is not pooled, which could not tell places from angles, and for
                a grid of over 256 patches a side.
        """
        if self.model is not None:
            check_pooled(self.model)
        rope: Any = self.rope
        if rope.training and getattr(rope, "aug_active", False):
            raise ValueError(
                "this model shifts or scales its rotary coordinates at random in training, which "
                "pooled tokens cannot follow: set model.rope.aug_active = False"
            )
        embed: Tensor = type(rope).get_embed(rope, *args, **kwargs)
        if len(args) > 1 or "dtype" in kwargs:
            return embed  # only asked for so by NaFlexViT's padded batches, which are masked
        shape = args[0] if args else kwargs.get("shape")
        fixed = getattr(rope, "feat_shape", None)
        rows, columns = fixed or shape or (0, 0)
        if max(rows, columns) > _MOST:
            raise ValueError(
                f"a grid of {rows}x{columns} rotary positions is larger than {_MOST} a side"
            )
        index = torch.arange(rows * columns, device=embed.device)
        size = torch.ones_like(index)
        places = (index // columns, index % columns, size * rows, size * columns)
        beside = torch.stack(places, -1).to(embed.dtype)
        return torch.cat((embed, beside.expand(*embed.shape[:-1], _COLUMNS)), -1)


def give_places(model: nn.Module) -> None:
    """Let a model with rotary positions tell its blocks where patches are."""
    rope = getattr(model, "rope", None)
    if isinstance(rope, nn.Module):
        rope.__dict__["get_embed"] = PlacedEmbed(rope, model)


def take_places(model: nn.Module) -> None:
    """Give the rotary embedding timm's own `get_embed` again."""
    rope = getattr(model, "rope", None)
    if isinstance(rope, nn.Module) and isinstance(rope.__dict__.get("get_embed"), PlacedEmbed):
        del rope.__dict__["get_embed"]


def split_places(rope: Tensor, head_dim: int) -> tuple[Tensor, Tensor | None]:
    """timm's own embedding, and the places `[N, 4]` or `[B, N, 4]` beside it, if there are any."""
    if rope.shape[-1] == 2 * head_dim:
        return rope, None
    embed, places = rope[..., :-_COLUMNS], rope[..., -_COLUMNS:]
    # Heads share them.
    if places.dim() == 4:
        places = places[:, 0]
    elif places.dim() == 3:
        places = places[0]
    return embed, places


def positions_of(rope: Any, places: Tensor, batch: int) -> Tensor:
    """Positions `[B, N, 3]` of patches: their two coordinates, and how many patches each is.

    Args:
        rope: timm's rotary embedding.
        places: row and column of each patch, rows and columns of the grid `[N, 4]` or `[B, N, 4]`.
        batch: how many images there are.
    """
    row, column, rows, columns = places.float().unbind(-1)
    pairs = [(row, rows), (column, columns)]
    reference = getattr(rope, "ref_feat_shape", None)
    reference = [None, None] if reference is None else list(reference)
    if getattr(rope, "grid_indexing", "ij") == "xy":
        pairs, reference = pairs[::-1], reference[::-1]
    kind = getattr(rope, "grid_type", "centered" if hasattr(rope, "periods") else "index")
    offset = float(getattr(rope, "grid_offset", 0.0))
    over = getattr(rope, "normalize_coords", "separate")
    both = {"max": torch.maximum(rows, columns), "min": torch.minimum(rows, columns)}
    axes = []
    for (at, side), meant in zip(pairs, reference, strict=True):
        if kind == "pixel":
            axis = 2 * at / (side - 1).clamp_min(1) - 1
        elif kind == "centered":
            axis = (at + 0.5 + offset) / both.get(over, side)
        else:
            axis = at + offset
        axis = axis if meant is None else axis / side * meant
        axes.append(2 * axis - 1 if kind == "centered" else axis)
    found = torch.stack((*axes, torch.ones_like(row)), -1)
    return found.expand(batch, -1, -1)


def _turns(rope: Any, layer: int) -> Tensor:
    """Radians of each frequency per unit of each coordinate, `[2, 1 or H, D/2]`.

    Raises:
        ValueError: for an embedding of another kind than timm's.
    """
    if hasattr(rope, "freqs"):
        mixed: Tensor = rope.freqs[:, layer].float()
        return mixed
    if hasattr(rope, "axis"):
        return torch.stack([rope.inv_freq * (rope.axis == axis) for axis in (1, 2)]).unsqueeze(1)
    if hasattr(rope, "periods"):
        bands = 2 * math.pi / rope.periods.float()
    elif getattr(rope, "bands", None) is not None:
        bands = rope.bands.float()
    else:
        raise ValueError(f"rotary positions by a {type(rope).__name__} cannot be pooled")
    none = torch.zeros_like(bands)
    return torch.stack((torch.cat((bands, none)), torch.cat((none, bands)))).unsqueeze(1)


def rotary_at(rope: Any, layer: int, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """The sines and cosines `[B, 1 or H, n, 2·D]` of a block at these positions.

    Args:
        rope: timm's rotary embedding.
        layer: the number of the block, from 0.
        positions: where the patch tokens are `[B, n, 3]`, as `positions_of` and `pool_positions`.
        dtype: the dtype of the result.

    Raises:
        ValueError: for an embedding of another kind than timm's.
    """
    turns = _turns(rope, layer).unsqueeze(2)
    # By multiplication, as autocast would round a matrix product.
    first, second = positions[:, None, :, :1], positions[:, None, :, 1:2]
    angles = first * turns[0] + second * turns[1]
    half = getattr(rope, "rotate_half", hasattr(rope, "axis"))
    angles = torch.cat((angles, angles), -1) if half else angles.repeat_interleave(2, -1)
    return torch.cat((angles.sin(), angles.cos()), -1).to(dtype)


def pool_positions(positions: Tensor, pooled: Pooled, kept: int) -> Tensor:
    """The positions `[B, k, 3]` of the tokens that a method made.

    A token that stays as it is keeps its own. A mean has the mean of its members', each counted as
    often as the patches it stands for; one without members is put in the middle of all.

    Args:
        positions: where the tokens were `[B, N, 3]`.
        pooled: what the method made of them.
        kept: how many tokens are left.
    """
    # One slot more takes the dropped tokens.
    slot = torch.where(pooled.assignment < 0, kept, pooled.assignment).unsqueeze(2)
    counts = positions[..., 2:]
    sums = torch.cat((positions[..., :2] * counts, counts), 2)
    total = sums.new_zeros(sums.shape[0], kept + 1, 3).scatter_add(1, slot.expand(-1, -1, 3), sums)
    total, mass = total[:, :kept], total[:, :kept, 2:]
    if pooled.kept is None:
        middle = sums[..., :2].sum(1, keepdim=True) / counts.sum(1, keepdim=True)
        place = torch.where(mass > 0, total[..., :2] / mass.clamp_min(1e-30), middle)
    else:
        place = gather_tokens(positions, pooled.kept)[..., :2]
    return torch.cat((place, mass), 2)


def check_rotary(model: nn.Module) -> None:
    """Compare the positions as computed here with those that the model has itself.

    Raises:
        ValueError: where they are not the same, so that pooled tokens would be put elsewhere.
    """
    rope: Any = getattr(model, "rope", None)
    if rope is None:
        return
    grid = patches_of(model).grid_size
    assert grid is not None
    if any(value.is_meta for value in (*rope.buffers(), *rope.parameters())):
        return
    training = rope.training
    try:
        rope.training = False
        with torch.no_grad():
            fixed = getattr(rope, "feat_shape", None) is not None
            placed = PlacedEmbed(rope)() if fixed else PlacedEmbed(rope)(shape=grid)
            if hasattr(rope, "freqs"):
                placed = placed[0]
            embed, places = split_places(placed, (placed.shape[-1] - _COLUMNS) // 2)
            assert places is not None
            ours = rotary_at(rope, 0, positions_of(rope, places, 1), embed.dtype)[0]
    finally:
        rope.training = training
    close = 1e-3 if embed.dtype in (torch.float32, torch.float64) else 3e-2
    if not bool((ours - embed).abs().max() < close):
        raise ValueError(
            f"the rotary positions of this {type(model).__name__} ({type(rope).__name__}) are not "
            "of a kind that this version of tokenpool can move, so it cannot be pooled"
        )
