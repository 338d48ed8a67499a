"""ViTs of any width, as timm models."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer

__all__ = ["build_vit"]


def build_vit(
    image_size: int | tuple[int, int],
    patch_size: int,
    width: int,
    depth: int,
    num_heads: int,
    num_classes: int,
    drop_path: float = 0.0,
    **timm_kwargs: Any,
) -> VisionTransformer:
    """A DeiT of any width: class token, qkv bias, MLP of four times the width, read by the token.

    Args:
        image_size: the side (or height and width) in pixels, a multiple of `patch_size`.
        patch_size: the side of a patch in pixels.
        width: the embedding dimension, a multiple of `num_heads`.
        depth: the number of blocks.
        num_heads: the number of attention heads.
        num_classes: the outputs of the head.
        drop_path: the stochastic depth rate of the last block; earlier ones have less, linearly.
        **timm_kwargs: what is passed on to timm's `VisionTransformer`.

    Raises:
        ValueError: for a width its heads do not divide, or an image its patches do not fill.
    """
    for name, value in (("width", width), ("depth", depth), ("num_heads", num_heads)):
        if value < 1:
            raise ValueError(f"{name} is {value} but must be at least 1")
    if width % num_heads:
        below = width // num_heads * num_heads
        advice = " or ".join(str(w) for w in (below, below + num_heads) if w)
        raise ValueError(f"width {width} is not divisible by its {num_heads} heads: use {advice}")
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    for side in sides:
        if side < patch_size or side % patch_size:
            raise ValueError(f"image size {side} is not a multiple of the patch size {patch_size}")
    return VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=width,
        depth=depth,
        num_heads=num_heads,
        num_classes=num_classes,
        drop_path_rate=drop_path,
        **timm_kwargs,
    )
