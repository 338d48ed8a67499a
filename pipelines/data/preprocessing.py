"""The pixels a model wants: colours, crop and resizing that travel with it, or the data's own.

What a model says (timm's `pretrained_cfg`) is carried out as timm's evaluation does it; what it
does not say is as for the models that are trained here on this data, and is said to be assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.data.geometry import Geometry
from pipelines.data.manifest import Manifest
from pipelines.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

CHARACTERS = ("digits", "glyphs")
_MODES = ("center", "squash", "border")
_WAYS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
# ITU-R 601, as Pillow's conversion to grey, in 65536ths.
_LUMA = (19595, 38470, 7471)


@dataclass(frozen=True)
class EvalCut:
    """How an evaluation image is decoded, resized and cropped, in timm's terms and by timm itself.

    Our own decoders are faster; their JPEG transform differs by a level or two, which is as good
    for models that were trained with it, and would not give another model its own top-1.

    Attributes:
        size: (height, width) that come out.
        crop_pct: share of the resized image that the crop keeps.
        crop_mode: "center", "squash" or "border".
        interpolation: "bilinear", "bicubic", …
        fill: colour of a border, as fractions.
    """

    size: tuple[int, int]
    crop_pct: float
    crop_mode: str = "center"
    interpolation: str = "bilinear"
    fill: tuple[float, ...] = (0.0, 0.0, 0.0)

    def transform(self) -> Any:
        """timm's own: a Pillow image → uint8 `[3, H, W]`."""
        from timm.data import create_transform

        return create_transform(
            input_size=(3, *self.size),
            is_training=False,
            use_prefetcher=True,  # leaves normalisation to the device
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            mean=self.fill,
        )


@dataclass(frozen=True)
class Preprocessing:
    """What lies between an image and a model.

    Attributes:
        mean: per channel, of pixels in 0..1.
        std: likewise.
        size: (height, width).
        cut: how images are resized and cropped; None: as the data's loader does.
        assumed: what the model does not say, in words; empty if it says everything.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    cut: EvalCut | None
    assumed: str = ""

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 `[B, 3, H, W]` → normalised `[B, channels, H, W]`, grey for one channel."""
        import torch  # here: what only prepares data does without it

        pixels = images.to(torch.float32)
        if len(self.mean) == 1:
            luma = torch.tensor(_LUMA, dtype=torch.float32, device=images.device) / 65536
            pixels = (pixels * luma.view(1, 3, 1, 1)).sum(1, keepdim=True).round()
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=images.device).view(1, -1, 1, 1) * 255
            for values in (self.mean, self.std)
        )
        return (pixels - mean) / std

    def __str__(self) -> str:
        """One line for people."""
        cut = "cut as the data's loader does"
        if self.cut is not None:
            cut = f"{self.cut.crop_mode} crop {self.cut.crop_pct:.4g}, {self.cut.interpolation}"
        colours = f"normalised by mean {_numbers(self.mean)} and std {_numbers(self.std)}"
        return f"images: {self.size[0]}x{self.size[1]} px, {cut}, {colours}" + (
            f" ({self.assumed})" if self.assumed else ""
        )


def preprocessing_of(model: Any, manifest: Manifest) -> Preprocessing:
    """What a model's images must look like, by its `pretrained_cfg` and its patch embedding.

    Raises:
        UserError: it takes images of another number of channels than one or three, or says things
            that contradict each other.
    """
    from tokenpool.patches import patches_of  # here: who reads data alone does without torch

    said = getattr(model, "pretrained_cfg", None) or {}
    size = patches_of(model).img_size or (0, 0)
    channels = int(getattr(model, "in_chans", 3))
    if channels not in (1, 3):
        raise UserError(
            f"the model takes images of {channels} channels, prepared data has 3 (RGB; 1 is made "
            "of them as grey): give a model of 1 or 3 channels"
        )
    missing = []
    mean, std = said.get("mean"), said.get("std")
    if mean is None or std is None:
        mean, std = manifest.mean, manifest.std
        missing.append("its normalisation is not known: assumed the data's own")
    mean, std = _for_channels(mean, channels), _for_channels(std, channels)
    cut = _cut(said, manifest, (size[0], size[1]), mean)
    if cut is None:
        missing.append("its crop is not known")
    return Preprocessing(mean, std, (size[0], size[1]), cut, "; ".join(missing))


def data_preprocessing(manifest: Manifest, image_size: int) -> Preprocessing:
    """What the models that are trained on this data see."""
    return Preprocessing(manifest.mean, manifest.std, (image_size, image_size), None)


def own_preprocessing(manifest: Manifest, image_size: int) -> dict[str, Any]:
    """The `pretrained_cfg` of a model trained here: the data's colours, the loader's cut."""
    stored = manifest.image_size == image_size or manifest.source in CHARACTERS
    resized = image_size if stored else max(image_size, round(image_size / Geometry().eval_ratio))
    return {
        "input_size": (3, image_size, image_size),
        "mean": tuple(manifest.mean),
        "std": tuple(manifest.std),
        "crop_pct": _crop_pct(image_size, resized),
        "crop_mode": "center",
        "interpolation": "bilinear",
        "num_classes": len(manifest.classes),
        "label_names": list(manifest.classes),
    }


def _crop_pct(size: int, resized: int) -> float:
    """The share that timm, which rounds down, makes so many pixels of."""
    share = size / resized
    while math.floor(size / share) < resized:
        share = math.nextafter(share, 0)
    return share


def _cut(
    said: dict[str, Any], manifest: Manifest, size: tuple[int, int], fill: tuple[float, ...]
) -> EvalCut | None:
    if not said or (size[0] == size[1] == manifest.image_size and not said.get("crop_pct")):
        # Images that are stored as the model wants them are not cut by a mere default.
        if not said and size[0] != size[1]:
            return EvalCut(size, 0.875, "center", "bicubic")
        return None
    crop_pct = float(said.get("crop_pct") or 0.875)
    if crop_pct <= 0:
        raise UserError(f"the model's crop_pct is {crop_pct:g}: it must be positive")
    mode = str(said.get("crop_mode") or "center")
    way = said.get("interpolation") or "bicubic"
    way = str(getattr(way, "value", way))
    if mode not in _MODES or way not in _WAYS:
        raise UserError(
            f"the model's crop_mode {mode!r} or interpolation {way!r} is unknown: use one of "
            f"{', '.join(_MODES)} and of {', '.join(_WAYS)}"
        )
    return EvalCut(size, crop_pct, mode, way, (fill * 3)[:3])


def _for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """As many values as there are channels."""
    found = tuple(float(value) for value in values)
    if len(found) == channels:
        return found
    if len(found) == 1:
        return found * channels
    if channels == 1 and len(found) == 3:
        # Grey made of colours that were normalised alike has their mean; else it is near it.
        return (sum(v * w for v, w in zip(found, _LUMA, strict=True)) / 65536,)
    raise UserError(f"the model has {channels} channels and a mean and std of {len(found)}")


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
