"""What is done to training batches, as configuration; reading it needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AugmentConfig(BaseModel):
    """What is done to training batches; the default is nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rotate: float = Field(default=0, ge=0, le=180, description="Largest angle, degrees.")
    translate: float = Field(
        default=0, ge=0, le=1, description="Largest shift, as a share of the side."
    )
    scale: tuple[float, float] = Field(default=(1, 1), description="Range of magnification.")
    shear: float = Field(default=0, ge=0, le=45, description="Largest horizontal shear, degrees.")
    padding: Literal["zeros", "border", "reflection"] = Field(
        default="zeros", description="What comes in from outside the image."
    )
    flip: float = Field(default=0, ge=0, le=1, description="Probability of a mirror image.")
    three_augment: bool = Field(
        default=False,
        description="3-Augment (DeiT III): one of grey, solarised, blurred per sample.",
    )
    colour_jitter: float = Field(
        default=0,
        ge=0,
        le=1,
        description="Brightness, contrast and saturation vary by up to this share.",
    )
    rand_augment_ops: int = Field(
        default=0, ge=0, le=5, description="Geometric RandAugment operations per sample."
    )
    rand_augment_magnitude: float = Field(default=9, ge=0, le=10, description="Their strength.")
    erase: float = Field(
        default=0, ge=0, le=1, description="Probability of random erasing, by noise."
    )
    mixup: float = Field(default=0, ge=0, description="Mixup's Beta parameter; 0: off.")
    cutmix: float = Field(default=0, ge=0, description="CutMix's Beta parameter; 0: off.")
    mix_probability: float = Field(default=1, ge=0, le=1, description="Share of samples mixed.")
    cutmix_share: float = Field(
        default=0.5, ge=0, le=1, description="Of these, the share by CutMix where both are on."
    )
    label_smoothing: float = Field(default=0, ge=0, lt=1)
    repeats: int = Field(
        default=1,
        ge=1,
        description="Repeated augmentation: an epoch is as long, of fewer images so often each.",
    )

    @model_validator(mode="after")
    def _scale_rises(self) -> AugmentConfig:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {self.scale} must be rising and positive")
        return self

    @property
    def soft_targets(self) -> bool:
        """Whether targets are distributions over classes rather than class numbers."""
        return self.mixup > 0 or self.cutmix > 0 or self.label_smoothing > 0


PRESETS: dict[str, AugmentConfig] = {
    "none": AugmentConfig(),
    # Digits must not be mirrored, and reach the edge of their 32 pixels.
    "digits": AugmentConfig(rotate=12, translate=0.08, scale=(0.85, 1.15), shear=8),
    "glyphs": AugmentConfig(translate=0.06, scale=(0.9, 1.1), colour_jitter=0.2),
    "deit": AugmentConfig(
        rand_augment_ops=2,
        colour_jitter=0.3,
        erase=0.25,
        mixup=0.8,
        cutmix=1.0,
        label_smoothing=0.1,
        repeats=3,
    ),
    "deit3": AugmentConfig(three_augment=True, colour_jitter=0.3, mixup=0.8, cutmix=1.0, repeats=3),
}
"""By name; `deit` and `deit3` follow Touvron et al. 2021, 2022 (crop and flip are the loader's)."""
