"""The model of a training job, from scratch or from saved weights, and its teacher."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import tokenpool as tp
from pipelines.errors import UserError
from pipelines.train.init import init_from_scratch
from pipelines.train.spec import TrainJob
from pipelines.train.weights import load_into


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


def build_teacher(job: TrainJob, device: torch.device) -> nn.Module | None:
    """The model a job learns from, frozen and in evaluation mode; None without distillation.

    Raises:
        UserError: there is no such model, or it knows other classes.
    """
    distill = job.train.distill
    if distill is None:
        return None
    teacher: nn.Module
    if Path(distill.teacher).is_dir():
        teacher = tp.load(distill.teacher)
    elif timm.is_model(distill.teacher):
        teacher = timm.create_model(distill.teacher, pretrained=True)
    else:
        raise UserError(
            f"no teacher {distill.teacher}: give a saved model's folder or the name of a timm model"
        )
    classes = getattr(teacher, "num_classes", job.model.num_classes)
    if classes != job.model.num_classes:
        raise UserError(
            f"teacher {distill.teacher} knows {classes} classes, the data has "
            f"{job.model.num_classes}"
        )
    return teacher.requires_grad_(False).eval().to(device)
