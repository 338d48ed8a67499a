"""A model that was trained on images normalised in one way, made to take them in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

Colours = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation per channel


@torch.no_grad()
def renormalize(model: Any, known: Colours, given: Colours) -> None:
    """Changes the patch embedding so that `given` images have the effect of `known` ones.

    Exact, as normalisation and patch embedding are both affine and patches are not padded.

    Args:
        model: a timm ViT whose patch embedding has a bias.
        known: what the model's images were normalised with in training.
        given: what they will be from now on.
    """
    (mean, std), (own_mean, own_std) = (
        tuple(torch.tensor(values, dtype=torch.float64) for values in colours)
        for colours in (given, known)
    )
    projection = model.patch_embed.proj
    weight = projection.weight.double()  # [width, channels, patch, patch]
    shift = ((mean - own_mean) / own_std).view(1, -1, 1, 1)
    projection.bias += (weight * shift).sum(dim=(1, 2, 3)).to(projection.bias.dtype)
    projection.weight.copy_(weight * (std / own_std).view(1, -1, 1, 1))
