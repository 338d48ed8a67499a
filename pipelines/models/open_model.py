"""A trained model by its folder, its file of weights or its name: whole, as it is to be run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from pipelines.errors import UserError
from pipelines.models.hub import is_sharded, pretrained
from pipelines.models.initial_weights import Source, described, fit, whole_model
from pipelines.models.model_metadata import check_named, config_said, timm_arguments, timm_name
from pipelines.models.state_dicts import read_json, read_state_dict
from tokenpool.patches import patches_of


def open_model(source: str, arch: str | None = None, *, pooled: bool = True) -> Any:
    """A saved model, a pretrained one of timm or a hub, or one of a training script's weights.

    It is on the CPU, in evaluation mode.

    Args:
        source: a `tp.save` folder or an export's, a timm name, `hf-hub:…`, `local-dir:…`, or a file
            or folder of weights.
        arch: timm's name of the model that plain weights are of, where they do not say it.
        pooled: whether it must be one that can be pooled and saved.

    Raises:
        UserError: there is no such model, it does not fit its weights, or it cannot be pooled.
    """
    model = _opened(source, arch, pooled).eval()
    if pooled:
        described(model, source)  # or refused
    return model


def _opened(source: str, arch: str | None, pooled: bool) -> Any:
    path = whole_model(source)
    if not isinstance(path, Path):
        return path
    hub = arch is None and "architecture" in read_json(path / "config.json")
    if hub and not is_sharded(path):
        return pretrained(f"local-dir:{path}")
    found = read_state_dict(path)
    name = check_named(arch or timm_name(found.said), source)
    arguments = timm_arguments(found.said, found.tensors)
    try:
        arguments = _size(name, arguments, found.tensors) | arguments
        model = timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:  # timm fails in many ways on arguments that are none of its own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{source}: timm cannot build {name}: {first}") from None
    if not pooled and not isinstance(model, VisionTransformer):
        raise UserError(f"{source}: plain weights are read for vision transformers, not for {name}")
    notes = (*found.notes, f"taken as timm's {name}")
    config = config_said(found.said | {"arch": name})
    architecture = described(model, source)
    known = Source(source, found.tensors, notes, architecture, found.said, config)
    vit: Any = model
    return fit(vit, known, head="own")


def _size(name: str, arguments: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, int]:
    """The image size that square positions are for, where nothing else says it.

    Raises:
        ValueError: with as many tokens in front as the model has they are no square.
    """
    positions, patches = tensors.get("pos_embed"), tensors.get("patch_embed.proj.weight")
    if positions is None or patches is None or positions.ndim != 3 or patches.ndim != 4:
        return {}
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, **arguments)
    own = getattr(model, "pos_embed", None)
    if "img_size" in arguments or own is None:
        return {}
    # A model without a place for the class token's position adds it to the token.
    for prefix in dict.fromkeys((own.shape[1] - patches_of(model).number, 1)):
        side = math.isqrt(max(0, positions.shape[1] - prefix))
        if side and side * side == positions.shape[1] - prefix:
            return {"img_size": side * patches.shape[-1]}
    raise ValueError(
        f"its {positions.shape[1]} positions are of no square image, nor is its size said: save it "
        "with tp.save or timm's save_for_hf, which keep it"
    )
