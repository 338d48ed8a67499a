"""The model of a training job, from scratch or from saved weights, and its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import tokenpool as tp
from pipelines.errors import UserError
from pipelines.storage.copies import local_path
from pipelines.train.init import init_from_scratch
from pipelines.train.spec import TrainJob
from pipelines.train.weights import load_into, pretrained


def build_model(job: TrainJob) -> VisionTransformer:
    """A DeiT, pooled where the job has a schedule.

    Raises:
        UserError: the weights to start from are not there or do not fit.
    """
    spec = job.model
    model = tp.build_vit(
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        width=spec.width,
        depth=spec.depth,
        num_heads=spec.heads,
        num_classes=spec.num_classes,
        drop_path=job.train.drop_path,
    )
    init_from_scratch(model)  # also for the head, where the weights to start from have another
    if job.init is not None:
        load_into(model, job.init)
    if job.schedule is not None:
        model = tp.pool(model, job.schedule, method=job.method)
    if job.train.checkpoint_activations:
        model.set_grad_checkpointing(True)
    return model


Colours = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation per channel


class Teacher(nn.Module):
    """A frozen model that is shown images the way it was trained to see them.

    Args:
        model: gives logits.
        given: what the student's images were normalised with.
        known: what the model's own images were.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, given: Colours, known: Colours) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        mean, std, own_mean, own_std = (
            torch.tensor(values).view(1, 3, 1, 1) for values in (*given, *known)
        )
        self.register_buffer("scale", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)
        # Where it has a position embedding it takes images of one size alone.
        self.size: tuple[int, int] | None = getattr(
            getattr(model, "patch_embed", None), "img_size", None
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, classes]` of images `[B, 3, H, W]` that were normalised for the student."""
        images = images * self.scale + self.shift
        if self.size is not None and images.shape[-2:] != tuple(self.size):
            images = F.interpolate(images, tuple(self.size), mode="bicubic", antialias=True)
        logits: Tensor = self.model(images)
        return logits

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode."""
        return self


def build_teacher(job: TrainJob, device: torch.device, given: Colours) -> Teacher | None:
    """The model a job learns from; None without distillation.

    Args:
        job: the job.
        device: where its model is.
        given: what its images are normalised with.

    Raises:
        UserError: there is no such model, or it knows other classes.
    """
    distill = job.train.distill
    if distill is None:
        return None
    model: nn.Module
    known = given
    folder = local_path(distill.teacher)
    if folder.is_dir():
        try:
            model = tp.load(folder)
        except ValueError as error:
            raise UserError(f"teacher: {error}") from None
    elif timm.is_model(distill.teacher):
        model = pretrained(distill.teacher)
        config: Any = model.pretrained_cfg
        known = (config["mean"], config["std"])
    else:
        raise UserError(
            f"no teacher {distill.teacher}: give a saved model's folder or the name of a timm model"
        )
    classes = getattr(model, "num_classes", job.model.num_classes)
    if classes != job.model.num_classes:
        raise UserError(
            f"teacher {distill.teacher} knows {classes} classes, the data has "
            f"{job.model.num_classes}"
        )
    return Teacher(model, given, known).to(device)
