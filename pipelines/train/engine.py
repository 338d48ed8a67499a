"""The DeepSpeed engine of a job, and the optimizer of DeiT's recipe in it.

AdamW, no decay on biases and norms, warmup and decay.
"""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import torch
import torch.distributed as dist
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

from pipelines.config import TrainConfig
from pipelines.train.imports import import_deepspeed
from pipelines.train.losses import training_loss


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups by weight decay and, with layer-wise decay, by depth; each with its `lr_scale`.

    Matrices decay; biases, norms and what `model.no_weight_decay()` names (position embedding
    and tokens) do not. timm's layer-wise groups follow BEiT (Bao et al., 2021).
    """
    skipped: set[str] = set(getattr(model, "no_weight_decay", set)())
    if layer_decay < 1:
        return list(
            param_groups_layer_decay(
                model, weight_decay, no_weight_decay_list=skipped, layer_decay=layer_decay
            )
        )
    groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=skipped)
    return [{**group, "lr_scale": 1.0} for group in groups]


def make_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW with DeiT's betas."""
    groups = parameter_groups(model, train.weight_decay, train.layer_decay)
    return torch.optim.AdamW(
        groups, lr=train.lr, fused=True
    )  # one pass, on a CPU a fifth of the time


def learning_rate(
    step: int,
    *,
    num_steps: int,
    warmup_steps: int,
    peak: float,
    low: float,
    decay_fraction: float | None = None,
) -> float:
    """Linear warmup to `peak`, then down to `low`; `step` counts from 0.

    Half a cosine over all that is left, or, with `decay_fraction`, `peak` until that share of
    all steps is left and then a straight line (warmup-stable-decay, Hu et al., 2024).
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if decay_fraction is not None:
        decay_steps = max(1, round(decay_fraction * num_steps))
        return low + (peak - low) * min(1.0, (num_steps - step) / decay_steps)
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return low + (peak - low) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def rate_at(train: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The `learning_rate` of a job's step, counted from 0 over all epochs."""
    return learning_rate(
        step,
        num_steps=train.epochs * steps_per_epoch,
        warmup_steps=round(train.warmup_epochs * steps_per_epoch),
        peak=train.lr,
        low=train.min_lr,
        decay_fraction=train.decay_fraction if train.lr_schedule == "wsd" else None,
    )


def use_right_accelerator() -> torch.device:
    """The device of this worker, told to DeepSpeed too; to be called before it is imported.

    The process group decides: a job without GPUs runs over gloo, also where the machine has one.
    """
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    os.environ["DS_ACCELERATOR"] = "cpu"
    return torch.device("cpu")


def make_engine(model: nn.Module, train: TrainConfig, world_size: int) -> Any:
    """Wraps a model and its AdamW in a DeepSpeed engine over the process group that is there.

    ZeRO buys nothing at 5 to 90 M parameters, so stage 0 with fp32 weights is the default and
    bf16 is torch's autocast around the forward pass, not DeepSpeed's bf16 optimizer (whose
    first AdamW update at stage 0 is off, ../shared/environment.md).

    Micro-batches and, at stage 0, clipping are not DeepSpeed's affair but `Update`'s: its own
    clipping at stage 0 goes through the parameters one by one and adds an all-reduce to each step.
    """
    deepspeed = import_deepspeed()
    from deepspeed.utils import logger as deepspeed_logger

    deepspeed_logger.setLevel(logging.WARNING)
    config: dict[str, Any] = {
        "train_batch_size": train.batch_size,
        "train_micro_batch_size_per_gpu": train.batch_size // world_size,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {
            "stage": train.zero_stage,
            # The default is 2 GB of fp32, far more than the gradients of these models.
            "reduce_bucket_size": sum(p.numel() for p in model.parameters()),
        },
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": train.clip_grad if train.zero_stage else 0.0,
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=make_optimizer(model, train),
        config=config,
        dist_init_required=False,
    )
    return engine


def set_learning_rate(optimizer: Any, lr: float) -> None:
    """Sets the rate of every parameter group, each at its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def plain_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: TrainConfig,
    images: Tensor,
    targets: Tensor,
) -> None:
    """A job's step in one process, without micro-batches and without anybody who watches it.

    Args:
        model: is trained.
        optimizer: that `make_optimizer` made.
        train: the precision, and the largest norm of the gradient.
        images: `[B, 3, H, W]`, normalised.
        targets: class numbers `[B]`, or distributions `[B, classes]`.
    """
    bf16 = train.precision == "bf16"
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        logits = model(images).float()
    training_loss(logits, targets, None, None).backward()
    if train.clip_grad:
        nn.utils.clip_grad_norm_(model.parameters(), train.clip_grad)
    optimizer.step()
    optimizer.zero_grad()
