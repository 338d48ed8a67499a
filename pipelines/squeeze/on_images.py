"""The call for notebooks: any timm ViT, any iterable of image batches, labels or none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import tokenpool as tp
from pipelines.console import Screen
from pipelines.errors import UserError
from pipelines.search.scorer import Batches, Scorer
from pipelines.squeeze.checks import check_poolable
from pipelines.squeeze.within_bound import (
    Squeezed,
    SqueezeOptions,
    find_schedule,
    share_of_dense,
)
from tokenpool.patches import patches_of

_UNKNOWN = -1


def squeeze(
    model: Any,
    images: Iterable[Any],
    rate: float = 0.5,
    *,
    method: str = "leader",
    schedules: int = 200,
    most_images: int = 256,
    batch_size: int = 64,
    seed: int = 0,
    quiet: bool = False,
) -> tuple[Any, Squeezed]:
    """Finds where a trained ViT can do with fewer tokens, without training and without labels.

    Schedules of one cost are compared by how far their predictions are from the dense model's.

    Args:
        model: a timm ViT, pooled or not; it is pooled in place, by the best schedule.
        images: batches `[B, C, H, W]` as the model wants them, or pairs of such a batch and labels
            `[B]`: a DataLoader, say. As many as are wanted are taken from it.
        rate: the most that an image may cost, as a share of the dense model's MACs.
        method: one of `tokenpool.METHODS`, with its options as text.
        schedules: how many to look at.
        most_images: on how many images.
        batch_size: images per forward pass.
        seed: of what is drawn.
        quiet: print nothing.

    Returns:
        The model, and what was found: the best schedule, cheaper ones, and what they do.

    Raises:
        UserError: the model cannot be pooled, the images do not fit it, or nothing costs so little.
    """
    check_poolable(model, method)
    if schedules < 1 or most_images < 1 or batch_size < 1:
        raise UserError("schedules, most_images and batch_size must be at least 1")
    bound = share_of_dense(model, rate)
    batches, labelled = _taken(model, images, most_images)
    tp.pool(model, None)
    training = model.training  # a scorer evaluates
    device = next(model.parameters()).device
    options = SqueezeOptions(bound, method, schedules, most_images, batch_size, str(device), seed)
    spec = tp.vit_spec(model)
    scorer = Scorer(
        {spec.width: model},
        None,
        batch_size=batch_size,
        device=str(device),
        num_threads=None,
        batches=batches,
    )
    try:
        screen = Screen(Console(quiet=quiet, highlight=False))
        found = find_schedule(model, scorer, options, screen, labelled=labelled)
    finally:
        model.train(training)
    return model, found


def _taken(model: Any, images: Iterable[Any], most: int) -> tuple[Batches, bool]:
    """The first images, with labels or a mark that there are none."""
    if isinstance(images, Tensor):
        images = [images]
    wanted = (model.in_chans, *(patches_of(model).img_size or (0, 0)))
    batches: Batches = []
    count, with_labels = 0, 0
    for number, item in enumerate(images, start=1):
        pixels, labels = _parts(item, number)
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != wanted or not pixels.is_floating_point():
            raise UserError(
                f"batch {number} is {list(pixels.shape)} of {pixels.dtype}, but this model takes "
                f"floats [B, {', '.join(map(str, wanted))}]: give batches as the model wants them"
            )
        if labels is not None and tuple(labels.shape) != (len(pixels),):
            raise UserError(
                f"batch {number} has {len(pixels)} images and labels {list(labels.shape)}: give "
                "one number an image, or no labels"
            )
        if not pixels.isfinite().all():
            raise UserError(f"batch {number} has pixels that are not finite")
        left = most - count
        with_labels += labels is not None
        labels = torch.full((len(pixels),), _UNKNOWN) if labels is None else labels
        batches.append((pixels[:left].detach(), labels[:left].detach().cpu().long()))
        count += min(left, len(pixels))
        if count >= most:
            break
    if count == 0:
        raise UserError("there are no images: give at least one batch")
    if with_labels not in (0, len(batches)):
        raise UserError("some batches have labels and others have none: give them to all or none")
    return batches, with_labels > 0


def _parts(item: Any, number: int) -> tuple[Tensor, Tensor | None]:
    if isinstance(item, Tensor):
        return item, None
    if isinstance(item, (tuple, list)) and item and all(isinstance(x, Tensor) for x in item[:2]):
        return item[0], item[1] if len(item) > 1 else None
    raise UserError(
        f"batch {number} is a {type(item).__name__}: give a tensor of images, or a pair of images "
        "and labels"
    )
