"""The optimizer of DeiT's recipe: AdamW, no decay on biases and norms, warmup and decay."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from pipelines.config import TrainConfig


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
