"""The optimizer of DeiT's recipe: AdamW, no decay on biases and norms, cosine with warmup."""

from __future__ import annotations

import math

import torch
from torch import nn

from pipelines.config import TrainConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: matrices with weight decay; biases, norms and tokens without.

    `model.no_weight_decay()`, where timm defines it, names the position embedding and tokens.
    """
    skipped: set[str] = set(getattr(model, "no_weight_decay", set)())
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        (plain if parameter.ndim <= 1 or name in skipped else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW with DeiT's betas."""
    return torch.optim.AdamW(parameter_groups(model, train.weight_decay), lr=train.lr)


def learning_rate(
    step: int, *, num_steps: int, warmup_steps: int, peak: float, low: float
) -> float:
    """Linear warmup to `peak`, then half a cosine down to `low`; `step` counts from 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return low + (peak - low) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
