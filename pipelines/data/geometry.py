"""Where an image is cropped and whether it is flipped: drawn here, carried out by a decoder.

Drawing apart from decoding makes crops a function of seed, epoch and step alone, and lets two
decoders be held against each other on the same boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ATTEMPTS = 10


@dataclass(frozen=True)
class Geometry:
    """How training and evaluation images are cut.

    `crop_scale` is the range of a training crop's share of the area, `crop_ratio` the range of its
    width to height, `flip` the probability of a horizontal flip, `eval_ratio` the share of the
    shorter side that the centre crop keeps (224 / 256 by habit).
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    eval_ratio: float = 224 / 256

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale {self.crop_scale} must be rising within (0, 1]")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio {self.crop_ratio} must be rising and positive")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip {self.flip} must be a probability")
        if not 0 < self.eval_ratio <= 1:
            raise ValueError(f"eval_ratio {self.eval_ratio} must be in (0, 1]")


def random_resized_crops(
    height: np.ndarray, width: np.ndarray, geometry: Geometry, rng: np.random.Generator
) -> np.ndarray:
    """Inception-style crops, by the rule of torchvision's `RandomResizedCrop.get_params`.

    Ten tries of a random area and log-uniform ratio; where none fits, the largest centred crop
    within the ratios. `rng` draws the same amount whatever the images' sizes [B].

    Returns:
        [B, 4] int64 boxes (top, left, height, width), each inside its image.
    """
    count = len(height)
    draws = rng.random((count, _ATTEMPTS, 2))
    corner = rng.random((count, 2))
    low, high = geometry.crop_scale
    area = (height * width)[:, None] * (low + draws[..., 0] * (high - low))
    log_low, log_high = np.log(geometry.crop_ratio)
    ratio = np.exp(log_low + draws[..., 1] * (log_high - log_low))
    try_width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    try_height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (
        (try_width > 0)
        & (try_width <= width[:, None])
        & (try_height > 0)
        & (try_height <= height[:, None])
    )
    first = fits.argmax(axis=1)
    rows = np.arange(count)
    found = fits[rows, first]
    # The fall-back: as large as the ratios allow, centred.
    whole_ratio = width / height
    fall_width = np.where(
        whole_ratio > geometry.crop_ratio[1], np.rint(height * geometry.crop_ratio[1]), width
    ).astype(np.int64)
    fall_height = np.where(
        whole_ratio < geometry.crop_ratio[0], np.rint(width / geometry.crop_ratio[0]), height
    ).astype(np.int64)
    box_width = np.where(found, try_width[rows, first], np.minimum(fall_width, width))
    box_height = np.where(found, try_height[rows, first], np.minimum(fall_height, height))
    top = np.where(found, corner[:, 0] * (height - box_height + 1), (height - box_height) // 2)
    left = np.where(found, corner[:, 1] * (width - box_width + 1), (width - box_width) // 2)
    return np.stack(
        [top.astype(np.int64), left.astype(np.int64), box_height, box_width], axis=1
    ).astype(np.int64)


def centre_crops(
    height: np.ndarray, width: np.ndarray, geometry: Geometry, size: int
) -> np.ndarray:
    """Where a centre crop of `size` lies after resizing by torchvision's roundings.

    torchvision's `Resize(256)` gives the shorter side 256 pixels and the other a whole number in
    proportion; `CenterCrop(224)` begins at a whole pixel of that.

    Returns:
        [B, 4] float64 boxes (top, left, height, width) in pixels of the images as they are.
    """
    shorter = np.minimum(height, width)
    resized = max(size, round(size / geometry.eval_ratio))
    sides = []
    for side in (height, width):
        scaled = np.where(side == shorter, resized, resized * side // shorter)
        begin = np.rint((scaled - size) / 2.0)
        sides.append((begin * side / scaled, size * side / scaled))
    (top, box_height), (left, box_width) = sides
    return np.stack([top, left, box_height, box_width], axis=1)


def whole_images(height: np.ndarray, width: np.ndarray) -> np.ndarray:
    """[B, 4] int64 boxes that keep everything."""
    zero = np.zeros_like(height)
    return np.stack([zero, zero, height, width], axis=1)
