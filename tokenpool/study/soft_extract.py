"""PoWER-BERT's own schedule search: soft-extract layers trained under a sparsity penalty.

Between blocks a learned vector in [0, 1]^N multiplies the tokens *sorted by significance*; an L1
penalty λ·(layer index) shrinks it. The number of tokens a layer keeps is the sum of its vector,
rounded down, at least 1, made non-increasing (PoWER-BERT, arXiv 2001.08950, section 3.3). One run
per λ gives one schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenpool.attention import AttentionRecord
from tokenpool.patches import patches_of
from tokenpool.pooling import check_model, pool, unpooled
from tokenpool.schedule import Schedule
from tokenpool.vit import PooledBlock

__all__ = ["SoftExtractResult", "powerbert_schedule", "schedule_from_vectors"]


@dataclass(frozen=True)
class SoftExtractResult:
    """What one run found.

    Attributes:
        schedule: the counts read off the vectors.
        vectors: one vector a block `[depth, N]`, in [0, 1]; entry i scales the i-th most
            significant token.
        penalty: λ.
        losses: the task loss of every step, without the penalty.
    """

    schedule: Schedule
    vectors: Tensor
    penalty: float
    losses: list[float]


class SoftExtractBlock(nn.Module):
    """A block whose patch tokens are scaled by their rank in significance."""

    def __init__(self, block: PooledBlock, vector: nn.Parameter, prefix: int) -> None:
        super().__init__()
        self.block, self.vector, self.prefix = block, vector, prefix

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Run the block, then scale its patch tokens.

        Args:
            x: the tokens `[B, prefix + N, C]`.
            rope: as in `PooledBlock.forward`.
            attn_mask: None; timm's blocks have it.
            is_causal: false; timm's blocks have it.

        Raises:
            ValueError: for an attention mask, or images of another number of patches.
        """
        if attn_mask is not None or is_causal:
            raise ValueError("extract vectors are trained without attention masks")
        block, prefix = self.block, self.prefix
        if x.shape[1] != prefix + len(self.vector):
            raise ValueError(
                f"extract vectors are trained on images of the model's own {len(self.vector)} "
                f"patches, but these have {x.shape[1] - prefix}"
            )
        record = AttentionRecord(want_received=True)
        x = x + block.attend(x, record, rope)
        x = x + block.mix(x)
        assert record.scores is not None
        order = record.scores[:, prefix:].argsort(dim=-1, descending=True, stable=True)
        scale = torch.zeros_like(order, dtype=x.dtype).scatter(
            1, order, self.vector.to(x.dtype).expand(len(x), -1)
        )
        return torch.cat((x[:, :prefix], x[:, prefix:] * scale.unsqueeze(-1)), 1)


def powerbert_schedule(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    penalty: float,
    *,
    learning_rate: float = 0.01,
    model_learning_rate: float = 0.0,
    progress: Callable[[int, float, Tensor], None] | None = None,
) -> SoftExtractResult:
    """Train extract vectors on labelled batches and read a schedule off them.

    The model is given back as it was: unless `model_learning_rate` is set only the vectors learn,
    and its weights are not touched; if it is set the weights learn along, as published, and stay.

    Args:
        model: a trained timm ViT (its own pooling is put aside meanwhile).
        batches: (images, labels), one step each; the number of batches is the length of the run.
        penalty: λ ≥ 0; the loss is the cross-entropy + λ·Σ_l l·Σ_i vector_l[i], l from 1.
        learning_rate: the learning rate of the vectors.
        model_learning_rate: the learning rate of the model's weights; 0 freezes them.
        progress: called with step, task loss and the vectors' sums.

    Raises:
        ValueError: for a negative or non-finite penalty, no batches, images of another number of
            patches than the model's own, or a model that cannot be pooled.
    """
    if not 0 <= penalty < float("inf"):
        raise ValueError(f"penalty is {penalty} but must be a number >= 0")
    vit: Any = model
    depth, patches = len(check_model(model)), patches_of(model).number
    flags = [parameter.requires_grad for parameter in vit.parameters()]
    device = next(vit.parameters()).device
    vectors = [nn.Parameter(torch.ones(patches, device=device)) for _ in range(depth)]
    groups: list[dict[str, Any]] = [{"params": vectors, "lr": learning_rate}]
    if model_learning_rate > 0:
        groups.append({"params": list(vit.parameters()), "lr": model_learning_rate})
    else:
        vit.requires_grad_(False)
    optimizer = torch.optim.Adam(groups)
    losses: list[float] = []
    with unpooled(model):
        pool(model, Schedule.dense(depth, patches))
        views = list(vit.blocks)
        vit.train(model_learning_rate > 0)
        try:
            for layer, view in enumerate(views):
                vit.blocks[layer] = SoftExtractBlock(view, vectors[layer], vit.num_prefix_tokens)
            for images, labels in batches:
                logits = vit(images)
                logits = logits[0] if isinstance(logits, tuple) else logits
                task = F.cross_entropy(logits, labels)
                masses = torch.stack([vector.sum() for vector in vectors])
                weights = torch.arange(1, depth + 1, device=device)
                optimizer.zero_grad()
                (task + penalty * (weights * masses).sum()).backward()
                optimizer.step()
                with torch.no_grad():
                    for vector in vectors:
                        vector.clamp_(0, 1)
                losses.append(task.item())
                if progress is not None:
                    progress(len(losses), losses[-1], masses.detach())
        finally:
            for layer, view in enumerate(views):
                vit.blocks[layer] = view
            for parameter, flag in zip(vit.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)
    if not losses:
        raise ValueError("there are no batches to train the extract vectors on")
    found = torch.stack([vector.detach() for vector in vectors])
    return SoftExtractResult(schedule_from_vectors(found), found, penalty, losses)


def schedule_from_vectors(vectors: Tensor) -> Schedule:
    """K_l = ⌊Σ vector_l⌋, at least 1, and no more than the layer before keeps.

    Args:
        vectors: one vector a block `[depth, N]`, in [0, 1].
    """
    counts: list[int] = []
    for mass in vectors.double().sum(1).tolist():
        # A sum of ones comes out a hair below the whole number it is.
        kept = max(1, int(mass + 1e-4))
        counts.append(min(kept, counts[-1]) if counts else kept)
    return Schedule(counts)
