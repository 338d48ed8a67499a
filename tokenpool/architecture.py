"""The constructor arguments of a timm ViT, read off the model itself, and back.

timm does not record them reliably, so they are taken from the modules; `describe` proves them by
building the model anew without memory and comparing the two module by module.
"""

import inspect
import math
from typing import Any

import torch
from timm.layers import LayerNorm, Mlp, PatchEmbed, RmsNorm
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tokenpool.pooling import check_model
from tokenpool.vit import PooledBlock

__all__ = ["build", "describe"]

_CLASSES = {"VisionTransformer": VisionTransformer, "distilled": VisionTransformerDistilled}
_NORMS: dict[str, type[nn.Module]] = {
    "LayerNorm": nn.LayerNorm,
    "timm.LayerNorm": LayerNorm,
    "RmsNorm": RmsNorm,
}
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "GELU": nn.GELU,
    "ReLU": nn.ReLU,
    "SiLU": nn.SiLU,
}


def describe(model: nn.Module) -> dict[str, Any]:
    """The arguments that rebuild the model's architecture, as plain JSON values.

    Raises:
        ValueError: for a model that cannot be pooled, or that the arguments do not describe.
    """
    check_model(model)
    vit: Any = model
    embed, blocks = vit.patch_embed, vit.blocks
    first, last = blocks[0], blocks[-1]
    if type(embed) is not PatchEmbed or type(first.mlp) is not Mlp:
        strange = embed if type(embed) is not PatchEmbed else first.mlp
        raise ValueError(f"a model with a {type(strange).__name__} cannot be saved")
    distilled = isinstance(vit, VisionTransformerDistilled)
    norm = first.norm1
    described: dict[str, Any] = {
        "class": "distilled" if distilled else "VisionTransformer",
        "img_size": list(embed.img_size),
        "patch_size": list(embed.patch_size),
        "in_chans": embed.proj.in_channels,
        "num_classes": vit.num_classes,
        "global_pool": vit.global_pool,
        "embed_dim": vit.embed_dim,
        "depth": len(blocks),
        "num_heads": first.attn.num_heads,
        "mlp_ratio": first.mlp.fc1.out_features / vit.embed_dim,
        "qkv_bias": first.attn.qkv.bias is not None,
        "qk_norm": not isinstance(first.attn.q_norm, nn.Identity),
        "scale_attn_norm": not isinstance(getattr(first.attn, "norm", nn.Identity()), nn.Identity),
        "scale_mlp_norm": not isinstance(first.mlp.norm, nn.Identity),
        "proj_bias": first.attn.proj.bias is not None,
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
        "act_layer": _name_of(first.mlp.act, _ACTIVATIONS),
    }
    rebuilt = build(described, device="meta")
    for (name, ours), (_, theirs) in zip(
        _parts(model).items(), _parts(rebuilt).items(), strict=False
    ):
        if ours != theirs:
            raise ValueError(f"a model whose {name} is {ours} cannot be saved: {theirs} was meant")
    if _parts(model).keys() != _parts(rebuilt).keys() or _shapes(model) != _shapes(rebuilt):
        raise ValueError(f"the architecture of this {type(model).__name__} cannot be saved")
    return described


def build(described: dict[str, Any], device: str | torch.device | None = None) -> VisionTransformer:
    """A model of that architecture, with fresh weights ("meta": none, where timm can do that)."""
    arguments = dict(described)
    kind = _CLASSES[arguments.pop("class")]
    norm, eps = _NORMS[arguments.pop("norm_layer")], arguments.pop("norm_eps")
    activation = _ACTIVATIONS[arguments.pop("act_layer")]
    for name in ("img_size", "patch_size"):
        arguments[name] = tuple(arguments[name])
    # The hidden width is int(width · ratio): half a unit more keeps 4.0·w from falling short.
    arguments["mlp_ratio"] = math.nextafter(arguments["mlp_ratio"], math.inf)

    def norm_layer(*args: Any, **kwargs: Any) -> nn.Module:
        return norm(*args, **{"eps": eps, **kwargs})

    if kind is VisionTransformerDistilled:
        arguments.pop("pool_include_prefix")
    # Older timm does not know the newest switches: leaving out one that is off changes nothing.
    known = inspect.signature(VisionTransformer).parameters
    arguments = {name: value for name, value in arguments.items() if value or name in known}

    def construct(place: str | torch.device) -> VisionTransformer:
        # What initial weights draw, on any device, is nobody else's chance.
        with torch.random.fork_rng(devices=[]), torch.device(place):
            return kind(norm_layer=norm_layer, act_layer=activation, **arguments)

    if device is None or torch.device(device).type != "meta":
        return construct(device or "cpu")
    try:
        return construct("meta")
    except (RuntimeError, NotImplementedError):
        # Older timm (1.0.20 does) reads tensors while it builds.
        return construct("cpu")


def _name_of(module: nn.Module, known: dict[str, type[nn.Module]]) -> str:
    for name, kind in known.items():
        if type(module) is kind:
            return name
    raise ValueError(f"a model with a {type(module).__name__} cannot be saved")


def _parts(model: nn.Module) -> dict[str, str]:
    """Every childless module, as it prints itself."""
    return {
        name: repr(module)
        for name, module in model.named_modules()
        if name and not isinstance(module, PooledBlock) and not list(module.children())
    }


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}
