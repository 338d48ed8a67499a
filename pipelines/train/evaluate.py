"""Evaluation with exact counts over all workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.train.life_signs import signs

Batches = Iterable[tuple[Tensor, Tensor]]


def evaluate(
    model: nn.Module,
    batches: Batches,
    prepare: Callable[[Tensor], Tensor],
    device: torch.device,
) -> dict[str, float]:
    """`evaluate_each` of one model."""
    return evaluate_each([model], batches, prepare, device)[0]


@torch.inference_mode()
def evaluate_each(
    models: Sequence[nn.Module],
    batches: Batches,
    prepare: Callable[[Tensor], Tensor],
    device: torch.device,
    *,
    at_a_time: int | None = None,
) -> list[dict[str, float]]:
    """Top-1, top-5 (fractions; of all classes where there are fewer) and mean cross-entropy.

    Each rank counts the samples it has, and the counts are summed: nothing is counted twice,
    whatever the number of ranks.

    Args:
        models: give logits `[B, classes]`; each sees the same images, decoded once.
        batches: this rank's `(images uint8 [B, 3, H, W], labels int64 [B])`.
        prepare: makes the models' input from the images (normalisation).
        device: where the models are.
        at_a_time: images of one forward pass, at most; default whole batches.

    Returns:
        `{top1, top5, loss}` of each model.
    """
    were_training = [model.training for model in models]
    for model in models:
        model.eval()
    # Sums stay on the device: to read them for each batch would make the host wait each time.
    counts = torch.zeros(len(models), 4, dtype=torch.float64, device=device)
    for images, labels in batches:
        inputs = prepare(images.to(device, non_blocking=True))
        wanted = labels.to(device, non_blocking=True)
        size = at_a_time or max(1, len(inputs))
        for some, classes in zip(inputs.split(size), wanted.split(size), strict=True):
            for row, model in zip(counts, models, strict=True):
                row += _counts(model(some).float(), classes)
                signs.beat()
    if dist.is_initialized():
        dist.all_reduce(counts)
    for model, training in zip(models, were_training, strict=True):
        model.train(training)
    return [
        {"top1": correct / total, "top5": correct5 / total, "loss": loss / total}
        for correct, correct5, loss, total in counts.tolist()
    ]


def _counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Right at first, right within five, summed cross-entropy, samples: `[4]` float64."""
    top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="sum")
    number = torch.tensor(len(labels), device=logits.device)
    return torch.stack([top5[:, 0].sum(), top5.sum(), loss, number]).double()
