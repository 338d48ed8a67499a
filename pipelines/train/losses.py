"""What a training step minimises: cross-entropy, and distillation from a teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pipelines.config import DistillConfig


def distillation_loss(student: Tensor, teacher: Tensor, config: DistillConfig) -> Tensor:
    """How far the student is from its teacher, both given as logits `[B, classes]`.

    `soft`: KL divergence of the two distributions at a temperature, times its square (Hinton et
    al., 2015). `hard`: cross-entropy with the teacher's choice (DeiT, Touvron et al., 2021, eq. 3).
    """
    if config.kind == "hard":
        return F.cross_entropy(student, teacher.argmax(dim=1))
    tau = config.temperature
    divergence = F.kl_div(
        F.log_softmax(student / tau, dim=1),
        F.log_softmax(teacher / tau, dim=1),
        log_target=True,
        reduction="batchmean",
    )
    return divergence * tau * tau


def training_loss(
    logits: Tensor, targets: Tensor, teacher: Tensor | None, config: DistillConfig | None
) -> Tensor:
    """The weighted mean of cross-entropy and distillation; cross-entropy alone without a teacher.

    Args:
        logits: `[B, classes]`.
        targets: class numbers `[B]`, or distributions `[B, classes]`.
        teacher: the teacher's logits on the same images.
        config: how much and which kind.
    """
    loss = F.cross_entropy(logits, targets)
    if teacher is None or config is None:
        return loss
    return (1 - config.weight) * loss + config.weight * distillation_loss(logits, teacher, config)
