"""What a source says of its model that does not show in the shapes of its weights."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor

from pipelines.errors import UserError
from tokenpool.models.architecture import describe

# Of an architecture, what is adapted, only matters in training, or shows in the weights' shapes.
_FREE = (
    "img_size", "patch_size", "embed_dim", "depth", "num_classes", "mlp_ratio", "init_values",
    "no_embed_class", "dynamic_img_size", "dynamic_img_pad", "drop_rate", "pos_drop_rate",
    "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate",
)  # fmt: skip
# Below it an epsilon is nothing beside variances: transformers has 1e-12 for timm's 1e-6.
_SMALL_EPS = 1e-5
# How scripts and hubs call what decides the logits.
_NAMES = {
    "num_heads": ("num_heads", "heads", "n_heads", "num_attention_heads", "nhead"),
    "norm_eps": ("norm_eps", "layer_norm_eps"),
    "act_layer": ("act_layer", "activation", "hidden_act"),
    "global_pool": ("global_pool", "gp"),
}
_WORDS = {
    "num_heads": "heads",
    "act_layer": "activation",
    "norm_eps": "norm epsilon",
    "global_pool": "pooling of the head",
    "class_token": "class token",
    "qk_norm": "q/k norm",
    "mlp_layer": "MLP",
}
_ARCH = ("arch", "model", "model_name", "architecture")
_DEFAULTS = {"mlp_layer": "Mlp"}
_TIMM_ARGUMENTS = (
    "num_heads", "act_layer", "global_pool", "init_values", "qk_norm", "reg_tokens", "class_token",
    "no_embed_class", "patch_size", "depth", "embed_dim", "mlp_ratio", "fc_norm", "pre_norm",
)  # fmt: skip


def timm_name(said: dict[str, Any]) -> str | None:
    """The timm model that a file says it is of."""
    for key in _ARCH:
        value = said.get(key)
        if isinstance(value, str) and timm.is_model(value):
            return value
    return None


def timm_arguments(said: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What `timm.create_model` is to be told beside the name, for a model of these weights."""
    found = {key: said[key] for key in _TIMM_ARGUMENTS if said.get(key) is not None}
    for part in (
        "model_kwargs",
        "model_args",
    ):  # all that timm's scripts passed on, and its folders
        if isinstance(said.get(part), dict):
            found = {k: v for k, v in said[part].items() if v is not None} | found
    if isinstance(said.get("gp"), str):
        found.setdefault("global_pool", said["gp"])
    size = said.get("img_size") or found.get("img_size") or said.get("input_size")
    if isinstance(size, int):
        found["img_size"] = size
    elif isinstance(size, list | tuple) and len(size) in (2, 3):
        found["img_size"] = tuple(size[-2:])
    head = tensors.get("head.weight")
    found["num_classes"] = 0 if head is None else len(head)
    patch = tensors.get("patch_embed.proj.weight")
    if patch is not None and patch.ndim == 4:
        found["in_chans"] = patch.shape[1]
    return found


def said_architecture(said: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    """The whole architecture, where the source names a timm model."""
    name = timm_name(said)
    if name is None:
        return None
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False, **timm_arguments(said, tensors))
        return describe(model)
    except Exception:
        # A name of another release, or arguments that are none of its own: as if none were said.
        return None


def config_said(said: dict[str, Any]) -> dict[str, Any]:
    """Of timm's `pretrained_cfg`, what the source says: the script's arguments over the model's."""
    name = timm_name(said)
    published = timm.get_pretrained_cfg(name) if name is not None else None
    found = {} if published is None else _images(published.to_dict())
    given = said.get("pretrained_cfg")
    found |= _images(given if isinstance(given, dict) else {})
    found |= _images(said)
    names = said.get("label_names") or said.get("classes") or found.pop("label_names", None)
    mapped = said.get("class_to_idx")
    if isinstance(mapped, dict) and sorted(mapped.values()) == list(range(len(mapped))):
        names = sorted(mapped, key=mapped.__getitem__)
    if isinstance(names, list | tuple) and all(isinstance(n, str) for n in names):
        found["label_names"] = list(names)
    return found


def _images(said: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in ("mean", "std"):
        value = said.get(key)
        if isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value):
            found[key] = tuple(value) * (3 if len(value) == 1 else 1)
    if isinstance(said.get("crop_pct"), int | float):
        found["crop_pct"] = float(said["crop_pct"])
    for key in ("crop_mode", "interpolation"):
        # timm's scripts take "random" for training; it is none for evaluation.
        if isinstance(said.get(key), str) and said[key] not in ("", "random"):
            found[key] = said[key]
    return found


def compare(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """What of two architectures differs and decides the logits, in words; empty if nothing does.

    `theirs` is the source's, whole or in part, under its own names; `ours` is from `describe`.
    """
    # Where only one of them has a distillation token, keys tell.
    if theirs.get("class") not in (None, ours["class"], "VisionTransformer", "distilled"):
        kind = theirs.get("name") or theirs["class"]
        return f"it is of a {kind}, which cannot be had by widths and depth alone"
    theirs, ours = _free_of(theirs), _free_of(ours)
    for key, value in ours.items():
        if key in _FREE or key == "class":
            continue
        said = _value(theirs, key)
        if said is not None and _plain(key, said) != _plain(key, value):
            word = _WORDS.get(key, key)
            return f"{word} {_text(said)} there and {_text(value)} in the model"
    return ""


def _free_of(described: dict[str, Any]) -> dict[str, Any]:
    """A model by its name in timm: of its arguments those that decide the logits."""
    if "arguments" not in described:
        return described
    arguments = {k: v for k, v in described["arguments"].items() if k not in _FREE}
    return described | {"arguments": arguments}


def _value(theirs: dict[str, Any], key: str) -> Any:
    if "class" in theirs:
        return theirs.get(key, _DEFAULTS.get(key))
    for name in _NAMES.get(key, ()):
        value = theirs.get(name)
        if isinstance(value, str if key in ("act_layer", "global_pool") else int | float):
            return value
    return None


def _plain(key: str, value: Any) -> Any:
    """Two names of one thing made the same."""
    if isinstance(value, str) and key in ("act_layer", "norm_layer"):
        return value.lower().removeprefix("timm.").removesuffix("fp32").replace("_", "")
    if key == "norm_eps" and isinstance(value, int | float):
        return max(value, _SMALL_EPS)
    return value


def _text(value: Any) -> str:
    return value.removeprefix("timm.") if isinstance(value, str) else f"{value}"


def assumed(said: dict[str, Any], ours: dict[str, Any]) -> str:
    """What a plain file does not say and is taken as the model has it, in one line."""
    unknown = [key for key in ("num_heads", "act_layer", "norm_eps", "global_pool")
               if _value(said, key) is None]  # fmt: skip
    if not unknown:
        return "its heads, activation, norm epsilon and pooling are as it says"
    listed = ", ".join(f"{_WORDS[key]} {_text(ours[key])}" for key in unknown)
    return f"the file does not say it: taken as {listed}"


def check_named(name: str | None, path: object) -> str:
    """A timm name to build a model of plain weights by.

    Raises:
        UserError: there is none.
    """
    if name is None or not timm.is_model(name):
        what = f"{name!r} is no timm model" if name else "it does not say which model it is of"
        raise UserError(f"{path}: {what}: give --arch, a timm name such as vit_small_patch16_224")
    return name
