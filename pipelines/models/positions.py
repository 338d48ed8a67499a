"""Position embeddings in the forms that people's files have, made one that a model can take."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor


def fit_positions(
    state: dict[str, Tensor],
    model: VisionTransformer,
    notes: list[str],
    known: dict[str, Any] | None = None,
) -> dict[str, Tensor]:
    """The state with `pos_embed` as the model has it: `[1, positions, width]`, on its grid.

    A position of the class token that the model has no place for is added to the class token, which
    is the same; one that the file lacks is nothing. `notes` gets a line of what was changed;
    `known` is the architecture that the weights are from, where it is known.

    Raises:
        ValueError: the positions lie on no grid.
    """
    own = getattr(model, "pos_embed", None)
    if "pos_embed" not in state or own is None:
        return state
    if any(token in state and not hasattr(model, token) for token in ("dist_token", "reg_token")):
        return state  # does not fit; comparing keys says it
    state = dict(state)
    positions = state["pos_embed"]
    prefix = model.num_prefix_tokens
    own_prefix = 0 if model.no_embed_class else prefix
    grid: tuple[int, int] = tuple(model.patch_embed.grid_size)
    if positions.ndim == 4:  # [1, width, rows, columns], or channels last
        width = own.shape[2]
        if positions.shape[1] == width and positions.shape[3] != width:
            positions = positions.permute(0, 2, 3, 1)
        old: tuple[int, int] = (positions.shape[1], positions.shape[2])
        positions, there = positions.flatten(1, 2), 0
    else:
        if positions.ndim == 2:
            positions = positions.unsqueeze(0)
        if positions.ndim != 3 or "register_tokens" in state:
            return state  # shapes are compared later; timm knows DINOv2's registers
        there, old = _said(known, positions.shape[1]) or _grid(
            positions.shape[1], prefix, own_prefix, grid
        )
    if positions.shape[-1] != own.shape[-1]:
        state["pos_embed"] = positions
        return state
    first, patches = positions[:, :there], positions[:, there:]
    if old != grid:
        patches = resample_abs_pos_embed(
            patches, new_size=list(grid), old_size=list(old), num_prefix_tokens=0
        )
        notes.append(f"positions resampled from {old[0]}x{old[1]} to {grid[0]}x{grid[1]} patches")
    if there == own_prefix:
        state["pos_embed"] = torch.cat([first, patches], dim=1)
    elif own_prefix == 0:
        _fold(state, first)
        state["pos_embed"] = patches
        notes.append("the class token's position is added to the token: the model keeps none")
    else:
        missing = first.new_zeros(1, own_prefix - there, first.shape[2])
        state["pos_embed"] = torch.cat([first, missing, patches], dim=1)
        notes.append("it has no position for the class token: taken as zero")
    return state


def _fold(state: dict[str, Tensor], first: Tensor) -> None:
    """Adds the positions of the tokens in front to those tokens, in their order."""
    for name in ("cls_token", "dist_token", "reg_token"):
        token = state.get(name)
        if token is not None and first.shape[1]:
            part, first = first[:, : token.shape[1]], first[:, token.shape[1] :]
            padded = torch.zeros_like(token)
            padded[:, : part.shape[1]] = part
            state[name] = token + padded


def _said(known: dict[str, Any] | None, count: int) -> tuple[int, tuple[int, int]] | None:
    """As `_grid`, by the architecture that the positions are from."""
    if known is None or "patch_size" not in known:
        return None
    rows, columns = (
        side // patch for side, patch in zip(known["img_size"], known["patch_size"], strict=True)
    )
    return (count - rows * columns, (rows, columns)) if count >= rows * columns else None


def _grid(
    count: int, prefix: int, own_prefix: int, grid: tuple[int, int]
) -> tuple[int, tuple[int, int]]:
    """How many of the positions are no patches', and the grid of those that are."""
    for there in dict.fromkeys((own_prefix, prefix, 1, 0)):
        if count - there == grid[0] * grid[1]:
            return there, grid
    for there in dict.fromkeys((own_prefix, prefix, 1, 0)):
        side = math.isqrt(max(0, count - there))
        if side and side * side == count - there:
            if there < own_prefix:
                raise ValueError(
                    f"its {count} positions are {side}x{side} patches' and none the class token's, "
                    "or of a grid that is not square: save it with tp.save or timm's save_for_hf, "
                    "which say it"
                )
            return there, (side, side)
    raise ValueError(f"its {count} positions lie on no square grid of patches")
