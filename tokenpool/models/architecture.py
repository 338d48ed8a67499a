"""The constructor arguments of a timm ViT, read off the model itself, and back.

timm does not record them reliably, so they are taken from the modules; `describe` proves them by
building the model anew without memory and comparing the two module by module. What they do not
describe (a convolutional stem, the rotary families) is built by its timm name and arguments, where
the model came from `timm.create_model`.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from timm import layers
from timm.layers import GluMlp, LayerNorm, Mlp, PatchEmbed, RmsNorm, SwiGLU
from timm.models.deit import VisionTransformerDistilled
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tokenpool.patches import patches_of
from tokenpool.pooling import check_model
from tokenpool.vit import PooledBlock

__all__ = ["build", "describe"]

_CLASSES = {"VisionTransformer": VisionTransformer, "distilled": VisionTransformerDistilled}
_BY_NAME = "timm"
_NORMS: dict[str, type[nn.Module]] = {
    "LayerNorm": nn.LayerNorm,
    "timm.LayerNorm": LayerNorm,
    "RmsNorm": RmsNorm,
    "RMSNorm": nn.RMSNorm,
} | {
    # Older timm has not all of them.
    name: getattr(layers, name)
    for name in ("LayerNormFp32", "RmsNormFp32", "SimpleNorm", "SimpleNormFp32")
    if hasattr(layers, name)
}
_ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "GELU": nn.GELU,
    "ReLU": nn.ReLU,
    "SiLU": nn.SiLU,
    "GELU(tanh)": partial(nn.GELU, approximate="tanh"),
    "Sigmoid": nn.Sigmoid,
    "Tanh": nn.Tanh,
}
_ACTIVATIONS |= {
    f"timm.{name}": layers.get_act_layer(name)
    for name in (
        "gelu", "gelu_tanh", "quick_gelu", "mish", "relu6", "leaky_relu", "elu", "celu", "selu",
        "prelu", "sigmoid", "tanh", "hard_sigmoid", "hard_swish", "hard_mish", "identity",
    )
}  # fmt: skip


def describe(model: nn.Module) -> dict[str, Any]:
    """The arguments that rebuild the model's architecture, as plain JSON values.

    Raises:
        ValueError: for a model that cannot be pooled, or that no arguments describe, by name.
    """
    check_model(model)
    vit: Any = model
    try:
        embed = patches_of(model).module
        if type(model) not in _CLASSES.values() or type(embed) is not PatchEmbed:
            strange = embed if type(model) in _CLASSES.values() else model
            raise ValueError(f"a model with a {type(strange).__name__} cannot be saved")
        described = _arguments(vit)
        _compare(model, build(described, device="meta"))
    except ValueError as error:
        named = _named(vit)
        if named is None:
            raise
        try:
            _compare(model, build(named, device="meta"))
        except Exception:  # whatever stands in the way of a model by name, the first reason counts
            raise error from None
        return named
    return described


def _arguments(vit: Any) -> dict[str, Any]:
    """What a timm `VisionTransformer` is to be built with."""
    embed, blocks = vit.patch_embed, vit.blocks
    first, last = blocks[0], blocks[-1]
    kind, wide = _mlp(first.mlp)
    norm = first.norm1
    described: dict[str, Any] = {
        "class": "distilled"
        if isinstance(vit, VisionTransformerDistilled)
        else "VisionTransformer",
        "img_size": list(embed.img_size),
        "patch_size": list(embed.patch_size),
        "in_chans": embed.proj.in_channels,
        "num_classes": vit.num_classes,
        "global_pool": vit.global_pool,
        "embed_dim": vit.embed_dim,
        "depth": len(blocks),
        "num_heads": first.attn.num_heads,
        "mlp_ratio": wide / vit.embed_dim,
        "mlp_layer": kind,
        "qkv_bias": getattr(first.attn.qkv, "bias", None) is not None,
        "qk_norm": not isinstance(first.attn.q_norm, nn.Identity),
        "scale_attn_norm": not isinstance(getattr(first.attn, "norm", nn.Identity()), nn.Identity),
        "scale_mlp_norm": not isinstance(first.mlp.norm, nn.Identity),
        "proj_bias": getattr(first.attn.proj, "bias", None) is not None,
        # Any value makes the layers; theirs come with the weights.
        "init_values": None if isinstance(first.ls1, nn.Identity) else 1e-5,
        "class_token": vit.has_class_token,
        "pos_embed": "none" if vit.pos_embed is None else "learn",
        "no_embed_class": vit.no_embed_class,
        "reg_tokens": vit.num_reg_tokens,
        "pre_norm": not isinstance(vit.norm_pre, nn.Identity),
        "final_norm": not (
            isinstance(vit.norm, nn.Identity) and isinstance(vit.fc_norm, nn.Identity)
        ),
        "fc_norm": not isinstance(vit.fc_norm, nn.Identity),
        "pool_include_prefix": vit.pool_include_prefix,
        "dynamic_img_size": vit.dynamic_img_size,
        "dynamic_img_pad": embed.dynamic_img_pad,
        "drop_rate": vit.head_drop.p,
        "pos_drop_rate": vit.pos_drop.p,
        "patch_drop_rate": getattr(vit.patch_drop, "prob", 0.0),
        "proj_drop_rate": first.attn.proj_drop.p,
        "attn_drop_rate": first.attn.attn_drop.p,
        "drop_path_rate": getattr(last.drop_path1, "drop_prob", 0.0) or 0.0,
        "norm_layer": _name_of(norm, _NORMS),
        "norm_eps": norm.eps,
        "act_layer": _activation(first.mlp.act),
    }
    if not isinstance(embed.norm, nn.Identity):
        described["embed_norm_layer"] = _name_of(embed.norm, _NORMS)
        described["embed_norm_eps"] = embed.norm.eps
    heads = {block.attn.num_heads for block in blocks}
    if len(heads) > 1:
        raise ValueError(f"a model whose blocks have {sorted(heads)} heads cannot be saved")
    return described


def _mlp(mlp: Any) -> tuple[str | dict[str, Any], int]:
    """Which MLP a block has, and the hidden width it was asked for."""
    if type(mlp) is Mlp:
        return "Mlp", int(mlp.fc1.weight.shape[0])
    if type(mlp) is SwiGLU:
        return "SwiGLU", int(mlp.fc1_x.weight.shape[0])
    if type(mlp) is GluMlp:
        return {"GluMlp": {"gate_last": mlp.gate_last}}, int(mlp.fc1.weight.shape[0])
    raise ValueError(f"a model with a {type(mlp).__name__} cannot be saved")


def _named(vit: Any) -> dict[str, Any] | None:
    """A model of timm's factory as its name and arguments there, as it is now."""
    config = getattr(vit, "pretrained_cfg", None) or {}
    name = config.get("architecture")
    if not name or not timm.is_model(name):
        return None
    arguments = dict(getattr(vit, "_model_args", {}))
    for key in ("pretrained_strict", "pretrained_cfg", "cache_dir"):
        arguments.pop(key, None)
    arguments["num_classes"] = vit.num_classes
    size = patches_of(vit).img_size
    if size is not None:
        arguments["img_size"] = list(size)
    if isinstance(getattr(vit, "global_pool", None), str):
        arguments["global_pool"] = vit.global_pool
    try:
        arguments = json.loads(json.dumps(arguments))
    except TypeError:
        return None  # built with a class or function of somebody's own
    return {"class": _BY_NAME, "name": name, "arguments": arguments, "num_classes": vit.num_classes}


def _compare(model: nn.Module, rebuilt: nn.Module) -> None:
    """Refuse two models that are not made of the same modules, with a ValueError."""
    ours, theirs = _parts(model), _parts(rebuilt)
    for name, text in ours.items():
        if name in theirs and theirs[name] != text:
            raise ValueError(
                f"a model whose {name} is {text} cannot be saved: {theirs[name]} was meant"
            )
    if ours.keys() != theirs.keys() or _shapes(model) != _shapes(rebuilt):
        strange = sorted(ours.keys() ^ theirs.keys()) or ["shapes of its weights"]
        raise ValueError(
            f"the architecture of this {type(model).__name__} cannot be saved: see its {strange[0]}"
        )


def build(described: dict[str, Any], device: str | torch.device | None = None) -> VisionTransformer:
    """A model of an architecture that `describe` gave, with fresh weights.

    Args:
        described: the arguments that rebuild it.
        device: where its weights lie; "meta": nowhere, as far as timm can do that.
    """
    if described["class"] == _BY_NAME:
        make = partial(_create, described["name"], described["arguments"])
    else:
        make = partial(_construct, described)
    if device is None or torch.device(device).type != "meta":
        return make(device or "cpu")
    try:
        return make("meta")
    except (RuntimeError, NotImplementedError):
        # Older timm (1.0.20 does) reads tensors while it builds, and so do stems.
        return make("cpu")


def _create(name: str, arguments: dict[str, Any], place: str | torch.device) -> Any:
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    with torch.random.fork_rng(devices=[]), torch.device(place):
        model = timm.create_model(name, pretrained=False, **arguments)
    if isinstance(model, NaFlexVit) and "img_size" in arguments:
        # Which timm passes over where the grid of the positions is given too.
        model.embeds.default_img_size = arguments["img_size"]
    return model


def _construct(described: dict[str, Any], place: str | torch.device) -> VisionTransformer:
    arguments = dict(described)
    kind = _CLASSES[arguments.pop("class")]
    arguments["norm_layer"] = _norm(arguments.pop("norm_layer"), arguments.pop("norm_eps"))
    if "embed_norm_layer" in arguments:
        arguments["embed_norm_layer"] = _norm(
            arguments.pop("embed_norm_layer"), arguments.pop("embed_norm_eps")
        )
    arguments["act_layer"] = _ACTIVATIONS[arguments.pop("act_layer")]
    mlp = arguments.pop("mlp_layer", "Mlp")
    if mlp == "SwiGLU":
        arguments["mlp_layer"] = SwiGLU
    elif mlp != "Mlp":
        # Whether the second half of the width gates the first, or the first the second.
        arguments["mlp_layer"] = partial(GluMlp, gate_last=bool(mlp["GluMlp"]["gate_last"]))
    for name in ("img_size", "patch_size"):
        arguments[name] = tuple(arguments[name])
    # The hidden width is int(width · ratio): half a unit more keeps 4.0·w from falling short.
    arguments["mlp_ratio"] = math.nextafter(arguments["mlp_ratio"], math.inf)
    if kind is VisionTransformerDistilled:
        arguments.pop("pool_include_prefix")
    # Older timm does not know the newest switches: leaving out one that is off changes nothing.
    known = inspect.signature(VisionTransformer).parameters
    arguments = {name: value for name, value in arguments.items() if value or name in known}
    # What initial weights draw, on any device, is nobody else's chance.
    with torch.random.fork_rng(devices=[]), torch.device(place):
        return kind(**arguments)


def _norm(name: str, eps: float) -> Callable[..., nn.Module]:
    norm = _NORMS[name]

    def norm_layer(*args: Any, **kwargs: Any) -> nn.Module:
        return norm(*args, **{"eps": eps, **kwargs})

    return norm_layer


def _name_of(module: nn.Module, known: dict[str, type[nn.Module]]) -> str:
    for name, kind in known.items():
        if type(module) is kind:
            return name
    raise ValueError(f"a model with a {type(module).__name__} cannot be saved")


def _activation(module: nn.Module) -> str:
    for name, make in _ACTIVATIONS.items():
        other = make()
        if type(module) is type(other) and repr(module) == repr(other):
            return name
    raise ValueError(f"a model with a {module} as activation cannot be saved")


def _parts(model: nn.Module) -> dict[str, str]:
    """Every childless module, as it prints itself."""
    return {
        name: repr(module)
        for name, module in model.named_modules()
        if name and not isinstance(module, PooledBlock) and not list(module.children())
    }


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}
