"""Augmentation and normalisation of decoded batches on the training device.

Decoding threads only crop and flip; all else happens here, per sample, on the device that trains.
Random numbers come from a CPU generator and are drawn for the global batch, so a step's
augmentation is the same on every device and for every number of ranks (Mixup and CutMix apart:
they pair samples that lie on the same rank). timm's Mixup and RandomErasing draw from global
random states and loop over samples, so only timm's target encoding is used; tests hold the rest
against torchvision and timm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.config.augmentation import PRESETS, AugmentConfig
from pipelines.data import augment_ops as ops

__all__ = ["PRESETS", "AugmentConfig", "DeviceAugment", "normalize", "step_generator"]

_RAND_AUGMENT_ROTATE = math.radians(30)
_RAND_AUGMENT_SHEAR = 0.3
_RAND_AUGMENT_SHIFT = 0.45


def step_generator(seed: int, epoch: int, step: int) -> torch.Generator:
    """A CPU generator for one training step; resuming at a step gives the same numbers."""
    state = torch.tensor([seed, epoch, step], dtype=torch.int64)
    # Three multiplicative steps of splitmix64: neighbouring steps get unrelated streams.
    mixed = 0
    for value in state.tolist():
        mixed = (mixed + value + 0x9E3779B97F4A7C15) & (2**64 - 1)
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed & (2**63 - 1))


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images / 255 - mean) / std per channel, computed in float32, in the input's memory format.

    Images [B, 3, H, W] are uint8, or float in 0..1 and then not divided by 255.
    """
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    shift = torch.tensor(mean, dtype=torch.float32, device=images.device).view(1, 3, 1, 1) * scale
    width = torch.tensor(std, dtype=torch.float32, device=images.device).view(1, 3, 1, 1) * scale
    return (images.to(torch.float32) - shift) / width


class DeviceAugment:
    """Augments and normalises a batch.

    Args:
        config: what to do.
        mean: per channel, of pixels in 0..1.
        std: likewise.
        num_classes: width of soft targets.
        rank: this process' row of the global batch, as in the loader.
        world_size: how many ranks share a global batch.
    """

    def __init__(
        self,
        config: AugmentConfig,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.config = config
        self._mean, self._std = tuple(mean), tuple(std)
        self._num_classes = num_classes
        self._rank, self._world_size = rank, world_size

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """Augment one batch.

        Args:
            images: [B, 3, H, W] uint8 on the training device.
            labels: [B] int64 there too.
            generator: on the CPU; the same state on every rank.
            dtype: of the images given out.

        Returns:
            (images [B, 3, H, W] normalised, targets: `labels` as they came, or [B, num_classes]
            float32 distributions where the configuration mixes or smooths).
        """
        config = self.config
        draw = _Draw(generator, len(images), self._rank, self._world_size, images.device)
        pixels = images.to(torch.float32) / 255
        if self._moves:
            pixels = ops.warp(pixels, self._matrices(draw), config.padding)
        if config.flip > 0:
            pixels = ops.flip(pixels, draw.uniform() < config.flip)
        if config.three_augment:
            choice = (draw.uniform() * 3).long()
            pixels = ops.grayscale(pixels, choice == 0)
            pixels = ops.solarize(pixels, choice == 1)
            pixels = ops.gaussian_blur(pixels, choice == 2, 0.1 + 1.9 * draw.uniform())
        if config.colour_jitter > 0:
            factors = (1 + config.colour_jitter * (2 * draw.uniform() - 1) for _ in range(3))
            pixels = ops.colour_jitter(pixels, *factors)
        out = normalize(pixels, self._mean, self._std)
        if config.erase > 0:
            out = self._erase(out, draw)
        targets = labels
        if config.soft_targets:
            out, targets = self._mix(out, labels, draw)
        return out.to(dtype), targets

    @property
    def _moves(self) -> bool:
        c = self.config
        return bool(c.rotate or c.translate or c.shear or c.scale != (1, 1) or c.rand_augment_ops)

    def _matrices(self, draw: _Draw) -> Tensor:
        c = self.config
        log_low, log_high = math.log(c.scale[0]), math.log(c.scale[1])
        matrices = ops.affine_matrices(
            angle=draw.symmetric() * math.radians(c.rotate),
            scale=(log_low + draw.uniform() * (log_high - log_low)).exp(),
            shear_x=draw.symmetric() * math.tan(math.radians(c.shear)),
            shear_y=torch.zeros_like(draw.uniform()),
            shift_x=draw.symmetric() * c.translate,
            shift_y=draw.symmetric() * c.translate,
        )
        for _ in range(c.rand_augment_ops):
            matrices = _compose(matrices, self._rand_augment_matrix(draw))
        return matrices

    def _rand_augment_matrix(self, draw: _Draw) -> Tensor:
        """One of rotation, two shears and two shifts per sample, full strength, either way."""
        which = (draw.uniform() * 5).long()
        strength = self.config.rand_augment_magnitude / 10
        sign = torch.where(draw.uniform() < 0.5, -1.0, 1.0) * strength
        zero = torch.zeros_like(sign)

        def only(number: int, amount: float) -> Tensor:
            return torch.where(which == number, sign * amount, zero)

        return ops.affine_matrices(
            angle=only(0, _RAND_AUGMENT_ROTATE),
            scale=zero + 1,
            shear_x=only(1, _RAND_AUGMENT_SHEAR),
            shear_y=only(2, _RAND_AUGMENT_SHEAR),
            shift_x=only(3, _RAND_AUGMENT_SHIFT),
            shift_y=only(4, _RAND_AUGMENT_SHIFT),
        )

    def _erase(self, images: Tensor, draw: _Draw) -> Tensor:
        boxes = ops.erase_boxes(draw.uniform(4), images.shape)
        mask = ops.boxes_mask(*boxes, images.shape)
        mask &= (draw.uniform() < self.config.erase).view(-1, 1, 1, 1)
        return torch.where(mask, draw.normal(images.shape), images)

    def _mix(self, images: Tensor, labels: Tensor, draw: _Draw) -> tuple[Tensor, Tensor]:
        """Mix each sample with its mirror image in the batch, by Mixup or CutMix."""
        from timm.data.mixup import one_hot

        c = self.config
        share = torch.ones_like(draw.uniform())
        if c.mixup > 0 or c.cutmix > 0:
            mixed = draw.uniform() < c.mix_probability
            cut = draw.uniform() < (c.cutmix_share if c.mixup > 0 else 1.0)
            if c.cutmix == 0:
                cut = torch.zeros_like(cut)
            blended, pasted = draw.beta(c.mixup or 1.0), draw.beta(c.cutmix or 1.0)
            place = draw.uniform(2)
            partner = images.flip(0)
            share = torch.where(mixed & ~cut, blended, share)
            height, width = images.shape[2:]
            side = (1 - pasted).sqrt()
            middle_y, middle_x = (place[:, 0] * height).long(), (place[:, 1] * width).long()
            half_y, half_x = (side * height / 2).long(), (side * width / 2).long()
            top, left = (middle_y - half_y).clamp(0), (middle_x - half_x).clamp(0)
            bottom = (middle_y + half_y).clamp(max=height)
            right = (middle_x + half_x).clamp(max=width)
            inside = ops.boxes_mask(top, left, bottom - top, right - left, images.shape)
            inside &= (mixed & cut).view(-1, 1, 1, 1)
            weight = share.view(-1, 1, 1, 1)
            images = torch.where(inside, partner, images * weight + partner * (1 - weight))
            kept = 1 - (bottom - top) * (right - left) / (height * width)
            share = torch.where(mixed & cut, kept, share)
        off = c.label_smoothing / self._num_classes
        on = 1 - c.label_smoothing + off
        hard = one_hot(labels, self._num_classes, on_value=on, off_value=off)
        targets = hard * share[:, None] + hard.flip(0) * (1 - share)[:, None]
        return images, targets


class _Draw:
    """Per-sample random numbers: drawn for the global batch on the CPU, this rank's rows kept."""

    def __init__(
        self, generator: torch.Generator, batch: int, rank: int, world_size: int, device: Any
    ) -> None:
        self._generator, self._device = generator, device
        self._total = batch * world_size
        self._rows = slice(rank, None, world_size)

    def _mine(self, values: Tensor) -> Tensor:
        return values[self._rows].to(self._device)

    def uniform(self, width: int | None = None) -> Tensor:
        shape = (self._total,) if width is None else (self._total, width)
        return self._mine(torch.rand(shape, generator=self._generator))

    def symmetric(self) -> Tensor:
        return 2 * self.uniform() - 1

    def beta(self, alpha: float) -> Tensor:
        """Beta(alpha, alpha) from two gamma variates; torch.distributions takes no generator."""
        concentration = torch.full((self._total,), float(alpha))
        first = torch._standard_gamma(concentration, generator=self._generator)
        second = torch._standard_gamma(concentration, generator=self._generator)
        return self._mine(first / (first + second).clamp(min=1e-12))

    def normal(self, shape: torch.Size) -> Tensor:
        """Noise for this rank's samples, drawn on the device: a batch of it is large."""
        device_generator = torch.Generator(self._device).manual_seed(
            int(torch.randint(2**62, (1,), generator=self._generator)) + self._rows.start
        )
        return torch.randn(shape, generator=device_generator, device=self._device)


def _compose(first: Tensor, second: Tensor) -> Tensor:
    """The inverse map of doing `first`, then `second` (both [B, 2, 3] inverse maps)."""
    corner = torch.tensor([0.0, 0.0, 1.0], device=first.device).expand(len(first), 1, 3)
    return (torch.cat([first, corner], 1) @ torch.cat([second, corner], 1))[:, :2]
