"""Batched image operations with one parameter per sample: torch only, any device.

Images are [B, 3, H, W] float in 0..1; a mask [B] bool says which samples an operation touches.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's "L"


def affine_matrices(
    angle: Tensor, scale: Tensor, shear_x: Tensor, shear_y: Tensor, shift_x: Tensor, shift_y: Tensor
) -> Tensor:
    """Inverse affine maps of square images, as `affine_grid` wants them: [B, 2, 3] float32.

    Args:
        angle: [B] radians, counter-clockwise as seen.
        scale: [B] magnification.
        shear_x: [B] tangent of the horizontal shear.
        shear_y: [B] tangent of the vertical shear.
        shift_x: [B] shift to the right as a fraction of the width.
        shift_y: [B] shift downwards as a fraction of the height.
    """
    cos, sin = angle.cos(), angle.sin()
    # Forward map A = scale · rotation · shear, with y pointing down.
    a = scale * (cos + sin * shear_y)
    b = scale * (cos * shear_x + sin)
    c = scale * (-sin + cos * shear_y)
    d = scale * (-sin * shear_x + cos)
    determinant = a * d - b * c
    inverse = torch.stack([d, -b, -c, a], dim=-1).div(determinant[:, None]).view(-1, 2, 2)
    shift = torch.stack([2 * shift_x, 2 * shift_y], dim=-1)
    offset = -(inverse @ shift[:, :, None])
    return torch.cat([inverse, offset], dim=2)


def warp(images: Tensor, matrices: Tensor, padding: str = "zeros") -> Tensor:
    """Resample bilinearly by [B, 2, 3] inverse maps; `padding` is `grid_sample`'s."""
    grid = F.affine_grid(matrices.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode=padding, align_corners=False)


def flip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror left to right."""
    return torch.where(_per_sample(mask), images.flip(3), images)


def grey(images: Tensor) -> Tensor:
    """[B, 1, H, W] luma."""
    weights = torch.tensor(_LUMA, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """`other + factor · (images - other)`, within 0..1; factor [B], 1 changes nothing."""
    return (other + _per_sample(factor) * (images - other)).clamp(0, 1)


def colour_jitter(
    images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor
) -> Tensor:
    """Brightness, contrast and saturation factors [B], in this order, as torchvision does them."""
    images = blend(images, torch.zeros_like(images), brightness)
    images = blend(images, grey(images).mean((1, 2, 3), keepdim=True), contrast)
    return blend(images, grey(images), saturation)


def grayscale(images: Tensor, mask: Tensor) -> Tensor:
    """Replace colour by luma."""
    return torch.where(_per_sample(mask), grey(images).expand_as(images), images)


def solarize(images: Tensor, mask: Tensor) -> Tensor:
    """Invert what is at least as bright as half."""
    inverted = torch.where(images >= 128 / 255, 1 - images, images)
    return torch.where(_per_sample(mask), inverted, images)


def gaussian_blur(images: Tensor, mask: Tensor, sigma: Tensor) -> Tensor:
    """Blur by a Gaussian of `sigma` [B] pixels (at most 2), edges reflected."""
    radius = min(6, images.shape[2] - 1, images.shape[3] - 1)
    batch, channels, height, width = images.shape
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma.clamp(min=1e-3)[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    padded = F.pad(images, (radius, radius, radius, radius), mode="reflect")
    flat = padded.reshape(1, batch * channels, *padded.shape[2:])
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=batch * channels)
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=batch * channels)
    return torch.where(_per_sample(mask), flat.view(batch, channels, height, width), images)


def boxes_mask(
    top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: torch.Size
) -> Tensor:
    """[B, 1, H, W] bool, True inside each sample's box (pixels, [B] each)."""
    rows = torch.arange(size[2], device=top.device)[None, :]
    columns = torch.arange(size[3], device=top.device)[None, :]
    in_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def erase_boxes(uniform: Tensor, size: torch.Size) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random-erasing boxes (Zhong et al. 2020): 2 to 33 % of the area, ratio 0.3 to 3.3.

    From `uniform` [B, 4] in 0..1 (area, ratio, row, column) for images of a size: (top, left,
    height, width), [B] int64 each.
    """
    height, width = size[2], size[3]
    area = (0.02 + uniform[:, 0] * (1 / 3 - 0.02)) * height * width
    log_ratio = math.log(0.3) + uniform[:, 1] * (math.log(3.3) - math.log(0.3))
    ratio = log_ratio.exp()
    box_height = (area * ratio).sqrt().round().clamp(1, height).long()
    box_width = (area / ratio).sqrt().round().clamp(1, width).long()
    top = (uniform[:, 2] * (height - box_height + 1)).long()
    left = (uniform[:, 3] * (width - box_width + 1)).long()
    return top, left, box_height, box_width


def _per_sample(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
