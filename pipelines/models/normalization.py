"""A model that comes from elsewhere made one of this data: its colours, its order of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipelines.data.manifest import Manifest
from pipelines.data.preprocessing import own_preprocessing
from pipelines.errors import UserError
from pipelines.models.class_order import match_classes, reorder_head
from tokenpool.models.preprocessing import class_names, set_config
from tokenpool.patches import patches_of

Colours = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation per channel


@torch.no_grad()
def renormalize(model: Any, known: Colours, given: Colours) -> None:
    """Changes the patch embedding so that `given` images have the effect of `known` ones.

    Exact, as normalisation and patch embedding are both affine and patches are not padded.
    """
    (mean, std), (own_mean, own_std) = (
        tuple(torch.tensor(values, dtype=torch.float64) for values in colours)
        for colours in (given, known)
    )
    embed = patches_of(model).module
    projection = embed.proj
    if projection.bias is None:
        raise UserError(
            "a model whose patch embedding has no bias cannot take images normalised otherwise"
        )
    weight = projection.weight.double()
    # By channel: [width, channels, patch area], or with the channels last where patches are flat.
    last = weight.dim() == 2 and embed.channels_last
    weight = (
        weight.unflatten(1, (-1, len(mean))) if last else weight.reshape(len(weight), len(mean), -1)
    )
    shape = (1, 1, -1) if last else (1, -1, 1)
    shift = ((mean - own_mean) / own_std).view(shape)
    projection.bias += (weight * shift).sum(dim=(1, 2)).to(projection.bias.dtype)
    weight = weight * (std / own_std).view(shape)
    projection.weight.copy_(weight.view_as(projection.weight))


def adopt(model: Any, manifest: Manifest, *, head: bool) -> list[str]:
    """Makes a model with weights from elsewhere take the data's images and name its classes.

    Its patch embedding is changed for the data's colours, its head is put into the data's order,
    both exactly; from then on `pretrained_cfg` says what models that are trained here say. Gives
    what was changed or assumed, each for one line.

    Args:
        model: a timm ViT of as many classes as the data, with the `pretrained_cfg` of its source.
        manifest: of the data.
        head: whether the head is used as it is, so that classes must be the data's; else one of
            other names is trained anew anyway.

    Raises:
        UserError: the model's classes are known and are others.
    """
    said = getattr(model, "pretrained_cfg", None) or {}
    own = own_preprocessing(manifest, (patches_of(model).img_size or (0,))[0])
    notes = []
    mean, std = said.get("mean"), said.get("std")
    if mean is None or std is None:
        notes.append("it does not say how its images were normalised: assumed as the data's")
    elif (tuple(mean), tuple(std)) != (own["mean"], own["std"]):
        renormalize(model, (mean, std), (manifest.mean, manifest.std))
        notes.append(
            f"made for images normalised by mean {_numbers(mean)} and std {_numbers(std)}: its "
            "patch embedding now takes the data's, with the same logits"
        )
    cut = {key: said[key] for key in ("crop_pct", "crop_mode", "interpolation") if key in said}
    if cut and any(own[key] != value for key, value in cut.items()):
        notes.append(
            f"its own cut of images ({', '.join(f'{k} {v}' for k, v in cut.items())}) is not used: "
            f"all models see the data's (crop_pct {own['crop_pct']:.4g}, {own['interpolation']})"
        )
    if head or class_names(model) is not None:
        try:
            order, note = match_classes(model, manifest.classes)
        except UserError:
            if head:
                raise
        else:
            notes.append(note)
            if order is not None:
                reorder_head(model, order, manifest.classes)
    set_config(model, own)
    return notes


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
