"""The model of a training job, from scratch or from saved weights, and its teacher."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import tokenpool as tp
from pipelines.errors import UserError
from pipelines.models.class_order import match_classes
from pipelines.models.hub import is_named
from pipelines.models.initial_weights import fit, open_source
from pipelines.models.open_model import open_model
from pipelines.models.outline import shaped
from pipelines.storage.copies import local_path
from pipelines.train.spec import TrainJob
from tokenpool.models.architecture import describe
from tokenpool.patches import fixed_size

logger = logging.getLogger(__name__)


def sincos_positions(rows: int, columns: int, width: int, temperature: float = 10_000.0) -> Tensor:
    """Two-dimensional sine-cosine position embedding `[rows * columns, width]`.

    A quarter each of sine and cosine of the column, then of the row (Beyer, Zhai, Kolesnikov,
    "Better plain ViT baselines for ImageNet-1k", 2022, section 3).

    Raises:
        ValueError: the width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"a sine-cosine embedding needs a width divisible by 4, got {width}")
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    steps = torch.arange(width // 4) / max(1, width // 4 - 1)
    frequency = temperature**-steps
    angles_x = x.reshape(-1, 1) * frequency
    angles_y = y.reshape(-1, 1) * frequency
    return torch.cat([angles_x.sin(), angles_x.cos(), angles_y.sin(), angles_y.cos()], dim=1)


@torch.no_grad()
def init_from_scratch(model: VisionTransformer) -> VisionTransformer:
    """Xavier weights, zero head, and sine-cosine positions that stay trainable.

    DeiT's own start (normal weights and positions of standard deviation 0.02) is made for
    widths of 192 and more. At 64 to 96 it keeps a model near chance for many epochs
    (`tests/pipelines/train/test_init.py` trains both).
    """
    # Draws from the global generator, which the job has seeded.
    model.init_weights("jax")
    if model.cls_token is not None:
        model.cls_token.normal_(std=0.02)
    width = model.embed_dim
    if model.pos_embed is not None and width % 4 == 0:
        rows, columns = model.patch_embed.grid_size
        temperature = 10.0 * max(rows, columns)
        model.pos_embed[:, model.num_prefix_tokens :] = sincos_positions(
            rows, columns, width, temperature
        )
    return model


def build_model(job: TrainJob, *, head: Literal["any", "own"] = "any") -> VisionTransformer:
    """A DeiT, or a model like the one its weights are of, pooled where the job has a schedule.

    Args:
        job: the job.
        head: whether weights to start from may have a head for other classes ("any").

    Raises:
        UserError: the weights to start from are not there or do not fit.
    """
    spec = job.model
    source = None if job.init is None else open_source(job.init)
    known = None if source is None else source.architecture
    narrowed = None if job.inherits is None else _narrowed(job, job.inherits)
    if narrowed is not None:
        known = describe(narrowed)
    model = shaped(spec, job.train.drop_path, known)
    if model is not None and model.in_chans != 3:
        raise UserError(
            f"{job.init} takes images of {model.in_chans} channels, the data has 3: give weights "
            "of a model of 3 (squeeze takes grey ones as they are)"
        )
    if model is None:
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
    if narrowed is not None:
        model.load_state_dict(narrowed.state_dict())
    if source is not None:
        fit(model, source, head=head)
    if job.schedule is not None:
        model = tp.pool(model, job.schedule, method=job.method)
    if job.train.checkpoint_activations:
        model.set_grad_checkpointing(True)
    return model


def _narrowed(job: TrainJob, wider: str) -> nn.Module:
    """A wider model cut to a job's width."""
    spec = job.model
    try:
        found: Any = tp.inherit_width(open_model(wider), spec.width)
    except ValueError as error:
        raise UserError(
            f"width {spec.width} cannot inherit from {wider}: {error}; base.inherit=false trains "
            "it from scratch"
        ) from None
    if found.blocks[0].attn.num_heads != spec.heads:
        raise UserError(
            f"width {spec.width} inherits {found.blocks[0].attn.num_heads} heads from {wider}, not "
            f"{spec.heads}"
        )
    return tp.pool(found, None)


Colours = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation per channel


class Teacher(nn.Module):
    """A frozen model that is shown images the way it was trained to see them.

    Args:
        model: gives logits.
        given: what the student's images were normalised with.
        known: what the model's own images were.
        order: which of its classes each of the student's is; None: the same.
    """

    scale: Tensor
    shift: Tensor
    order: Tensor | None

    def __init__(
        self, model: nn.Module, given: Colours, known: Colours, order: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        mean, std, own_mean, own_std = (
            torch.tensor(values).view(1, 3, 1, 1) for values in (*given, *known)
        )
        self.register_buffer("scale", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)
        moved = order is not None and list(order) != list(range(len(order)))
        self.register_buffer("order", torch.tensor(list(order or ())) if moved else None)
        # Where it has a position embedding it takes images of one size alone.
        self.size = fixed_size(model)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, classes]` of images `[B, 3, H, W]` that were normalised for the student."""
        images = images * self.scale + self.shift
        if self.size is not None and images.shape[-2:] != tuple(self.size):
            images = F.interpolate(images, tuple(self.size), mode="bicubic", antialias=True)
        logits: Tensor = self.model(images)
        return logits if self.order is None else logits[:, self.order]

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode."""
        return self


def build_teacher(
    job: TrainJob, device: torch.device, given: Colours, classes: Sequence[str] | None = None
) -> Teacher | None:
    """The model a job learns from; None without distillation.

    Args:
        job: the job.
        device: where its model is.
        given: what its images are normalised with.
        classes: what the data calls its classes.

    Raises:
        UserError: there is no such model, or it knows other classes.
    """
    distill = job.train.distill
    if distill is None:
        return None
    if not is_named(distill.teacher) and not local_path(distill.teacher).exists():
        raise UserError(
            f"no teacher {distill.teacher}: give a saved model's folder or the name of a timm model"
        )
    try:
        model = open_model(distill.teacher, pooled=False)
    except UserError as error:
        raise UserError(f"teacher: {error}", exit_code=error.exit_code) from None
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    mean, std = config.get("mean"), config.get("std")
    known = given if mean is None or std is None else (tuple(mean), tuple(std))
    if getattr(model, "in_chans", 3) != 3 or len(known[0]) != 3:
        raise UserError(
            f"teacher {distill.teacher} takes images of {getattr(model, 'in_chans', len(known[0]))}"
            " channels, the data has 3"
        )
    found = getattr(model, "num_classes", job.model.num_classes)
    if found != job.model.num_classes:
        raise UserError(
            f"teacher {distill.teacher} knows {found} classes, the data has {job.model.num_classes}"
        )
    order = None
    if classes is not None:
        try:
            order, note = match_classes(model, classes)
        except UserError as error:
            raise UserError(f"teacher {distill.teacher}: {error}") from None
        logger.info("teacher %s: %s", distill.teacher, note)
    return Teacher(model, given, known, order).to(device)
