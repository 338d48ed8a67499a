"""Weights of a model that is trained from scratch."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor


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
