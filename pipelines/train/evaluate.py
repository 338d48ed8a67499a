"""Evaluation with exact counts over all workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    prepare: Callable[[Tensor], Tensor],
    device: torch.device,
) -> dict[str, float]:
    """Top-1, top-5 (fractions) and mean cross-entropy over a split.

    Each rank counts the samples it has, and the counts are summed: nothing is counted twice,
    whatever the number of ranks.

    Args:
        model: gives logits `[B, classes]`.
        batches: this rank's `(images uint8 [B, 3, H, W], labels int64 [B])`.
        prepare: makes the model's input from the images (normalisation).
        device: where the model is.
    """
    was_training = model.training
    model.eval()
    counts = torch.zeros(4, dtype=torch.float64)
    for images, labels in batches:
        logits = model(prepare(images.to(device, non_blocking=True))).float()
        labels = labels.to(device, non_blocking=True)
        top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        counts += torch.stack(
            [top5[:, 0].sum(), top5.sum(), loss, torch.tensor(len(labels), device=device)]
        ).cpu()
    if dist.is_initialized():
        on_device = counts.to(device)
        dist.all_reduce(on_device)
        counts = on_device.cpu()
    model.train(was_training)
    correct, correct5, loss_sum, total = counts.tolist()
    return {"top1": correct / total, "top5": correct5 / total, "loss": loss_sum / total}
