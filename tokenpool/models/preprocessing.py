"""What a model's images look like and what its classes are called, kept with its weights.

timm's `model.pretrained_cfg` is where both stand; `timm.data.resolve_model_data_config` reads it.
"""

from __future__ import annotations

import json
import math
from typing import Any

from torch import nn

from tokenpool.patches import image_size

__all__ = ["class_names", "image_config", "read_config", "set_config", "written_config"]

# Of timm's `pretrained_cfg`, what decides the pixels a model is shown.
_TEXTS = ("crop_mode", "interpolation")
_NUMBERS = ("crop_pct", "test_crop_pct", "crop_border_pixels")
_CHANNELS = ("mean", "std")
_PROVENANCE = ("architecture", "tag")


def image_config(model: nn.Module) -> dict[str, Any]:
    """What `model.pretrained_cfg` says of images, as plain JSON values; empty if it says nothing.

    Raises:
        ValueError: for a mean or std that are no finite numbers, or a std that is not positive.
    """
    said = _pretrained_cfg(model)
    found: dict[str, Any] = {}
    for name in _CHANNELS:
        if said.get(name) is not None:
            found[name] = _floats(name, said[name])
    if min(found.get("std", [1.0])) <= 0:
        raise ValueError(f"pretrained_cfg['std'] is {found['std']}: it must be positive")
    for name in _NUMBERS:
        if said.get(name) is not None:
            (found[name],) = _floats(name, [said[name]])
    for name in _TEXTS:
        if said.get(name):
            # torchvision's InterpolationMode has the name as its value.
            found[name] = str(getattr(said[name], "value", said[name]))
    if not found:
        return {}
    for name in _PROVENANCE:
        if said.get(name):
            found[name] = str(said[name])
    size = image_size(model) or (said.get("input_size") or (0,))[1:]
    channels = getattr(model, "in_chans", None) or len(found.get("mean", [0] * 3))
    if size:
        found["input_size"] = [int(channels), *(int(side) for side in size)]
    return found


def class_names(model: nn.Module) -> list[str] | None:
    """The names of a model's outputs, in their order, where `pretrained_cfg` has them.

    Names of another number of classes are those of a head that was replaced since.
    """
    names = _pretrained_cfg(model).get("label_names")
    if not isinstance(names, list | tuple) or len(names) != getattr(model, "num_classes", None):
        return None
    return [str(name) for name in names]


def written_config(model: nn.Module) -> dict[str, Any]:
    """The `preprocessing` and `classes` of a saved model's header, as far as they are known."""
    header: dict[str, Any] = {}
    images, names = image_config(model), class_names(model)
    if images:
        header["preprocessing"] = images
    if names is not None:
        header["classes"] = names
    return json.loads(json.dumps(header))


def read_config(model: nn.Module, header: dict[str, Any]) -> None:
    """Give a model the `pretrained_cfg` that its header holds, if it holds one."""
    images, names = dict(header.get("preprocessing") or {}), header.get("classes")
    if not images and names is None:
        return
    for name in (*_CHANNELS, "input_size"):
        if name in images:
            images[name] = tuple(images[name])
    images["num_classes"] = model.num_classes
    if names is not None:
        images["label_names"] = list(names)
    set_config(model, images)


def set_config(model: nn.Module, config: dict[str, Any]) -> None:
    """Give a model a `pretrained_cfg`; the name by which timm built it is kept."""
    architecture = _pretrained_cfg(model).get("architecture")
    if architecture:
        config = {"architecture": architecture} | config
    # timm's newer and older name of the same.
    vit: Any = model
    vit.pretrained_cfg = vit.default_cfg = config


def _pretrained_cfg(model: nn.Module) -> dict[str, Any]:
    """What timm keeps with a model, as a dictionary; empty where it keeps nothing."""
    said = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    return said if isinstance(said, dict) else dict(vars(said))


def _floats(name: str, values: Any) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        raise ValueError(f"pretrained_cfg[{name!r}] is {values!r}, not numbers") from None
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"pretrained_cfg[{name!r}] is {values!r}, not finite numbers")
    return numbers
