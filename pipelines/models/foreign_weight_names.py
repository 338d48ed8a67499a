"""Weights of the same ViT under the names of transformers and of torchvision, put into timm's."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

_TRANSFORMERS = {
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.distillation_token": "dist_token",
    r"embeddings\.register_tokens": "reg_token",
    r"embeddings\.mask_token": "mask_token",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"encoder\.layer\.(\d+)\.(?:layernorm_before|norm1)\.": r"blocks.\1.norm1.",
    r"encoder\.layer\.(\d+)\.(?:layernorm_after|norm2)\.": r"blocks.\1.norm2.",
    r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.": r"blocks.\1.attn.\2.",
    r"encoder\.layer\.(\d+)\.attention\.output\.dense\.": r"blocks.\1.attn.proj.",
    r"encoder\.layer\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.": r"blocks.\1.mlp.fc1.",
    r"encoder\.layer\.(\d+)\.(?:output\.dense|mlp\.fc2)\.": r"blocks.\1.mlp.fc2.",
    r"encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1": r"blocks.\1.ls\2.gamma",
    r"layernorm\.": "norm.",
    r"(?:cls_)?classifier\.": "head.",
    r"distillation_classifier\.": "head_dist.",
}
_TORCHVISION = {
    r"class_token": "cls_token",
    r"conv_proj\.": "patch_embed.proj.",
    r"encoder\.pos_embedding": "pos_embed",
    r"encoder\.layers\.encoder_layer_(\d+)\.ln_(\d)\.": r"blocks.\1.norm\2.",
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_": r"blocks.\1.attn.qkv.",
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.": r"blocks.\1.attn.proj.",
    r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.": r"blocks.\1.mlp.fc1.",
    r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.": r"blocks.\1.mlp.fc2.",
    r"encoder\.ln\.": "norm.",
    r"heads\.head\.": "head.",
}
# A key that only this library has, by which the prefix of a wrapper is found too.
_LIBRARIES = {
    "embeddings.patch_embeddings.projection.weight": ("transformers", _TRANSFORMERS),
    "conv_proj.weight": ("torchvision", _TORCHVISION),
}
_WRAPPED_BODY = re.compile(r"(?:module\.)?(?:(?:vit|deit|dinov2|dinov2_with_registers)\.)?$")


def in_timms_names(state: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """The state by timm's names; as it is, if of neither library. `notes` get whose they were."""
    for anchor, (library, table) in _LIBRARIES.items():
        prefix = next((key[: -len(anchor)] for key in state if key.endswith(anchor)), None)
        # BEiT, CLIP and others have such embeddings too, but are no plain ViT.
        if prefix is None or not _WRAPPED_BODY.match(prefix):
            continue
        outer = "module." if prefix.startswith("module.") else ""
        renamed = {_renamed(k, prefix, outer, table): v for k, v in state.items()}
        notes.append(f"its names are those of {library}")
        pooler = [key for key in renamed if key.startswith("pooler.")]
        if pooler:
            notes.append("left out beside the model: pooler")
        return _joined({k: v for k, v in renamed.items() if k not in pooler})
    return state


def _renamed(key: str, prefix: str, outer: str, table: dict[str, str]) -> str:
    short = key.removeprefix(prefix) if key.startswith(prefix) else key.removeprefix(outer)
    for pattern, name in table.items():
        changed, count = re.subn(f"^{pattern}", name, short)
        if count:
            return changed
    return short


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The three matrices of a block's queries, keys and values as one."""
    joined = dict(state)
    for key in state:
        if ".attn.query." in key:
            parts = [key.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            if all(part in joined for part in parts):
                values = [joined.pop(part) for part in parts]
                joined[key.replace(".query.", ".qkv.")] = torch.cat(values)
    return joined


def said_by_transformers(config: dict[str, Any], images: dict[str, Any]) -> dict[str, Any]:
    """Class names and preprocessing as timm calls them, of a folder of transformers'.

    `images` is its preprocessor_config.json; empty without one.
    """
    found: dict[str, Any] = {}
    for theirs, ours in (("image_mean", "mean"), ("image_std", "std")):
        if isinstance(images.get(theirs), list):
            found[ours] = images[theirs]
    size, crop = images.get("size"), images.get("crop_size")
    if images.get("do_center_crop") and isinstance(size, dict) and isinstance(crop, dict):
        if size.get("shortest_edge") and crop.get("height"):
            found["crop_pct"] = crop["height"] / size["shortest_edge"]
    elif images.get("do_resize") and not images.get("do_center_crop"):
        found |= {"crop_pct": 1.0, "crop_mode": "squash"}
    if images.get("resample") in (2, 3):
        found["interpolation"] = {2: "bilinear", 3: "bicubic"}[images["resample"]]
    names = config.get("id2label")
    if isinstance(names, dict) and not any(str(n).startswith("LABEL_") for n in names.values()):
        with suppress(ValueError):  # numbered by something else than numbers
            found["label_names"] = [str(names[key]) for key in sorted(names, key=int)]
    return found
