"""Multiply-accumulates of the single layers of a ViT, read off the layers that are really there.

timm's own layers are counted in closed form; whatever stands in the place of one (a wrapper,
another MLP, a convolutional stem) is run on tensors without values under PyTorch's operator
counter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from timm.layers import AttentionPoolLatent, GluMlp, Mlp, PatchEmbed, SwiGLU
from timm.models.naflexvit import NaFlexEmbeds
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tokenpool.attention import is_plain_linear

__all__ = ["BlockCost", "HeadCost", "block_cost", "embed_macs", "head_cost", "layer_macs"]

# MLPs that call each of their layers once for every token, and mix no tokens.
_MLPS = (Mlp, GluMlp, SwiGLU)


class BlockCost(NamedTuple):
    """MACs of the layers of one block.

    Attributes:
        query: MACs of a token's query.
        key_value: MACs of a token's key and value.
        output: MACs of a token's way out of attention: projection and gate.
        mlp: MACs of a token's MLP.
        apart: whether queries can be computed without keys and values (see `cls_only_last`).
    """

    query: int
    key_value: int
    output: int
    mlp: int
    apart: bool = True


class HeadCost(NamedTuple):
    """MACs of a head, beside those of a Linear classifier on what is read.

    Attributes:
        once: MACs whatever the number of tokens.
        per_token: MACs for each patch token that the head reads.
        per_pair: MACs for each pair of tokens that it reads, prefix tokens among them.
        classes: outputs of the Linear classifiers, which read one token each.
    """

    once: int
    per_token: int
    per_pair: int
    classes: int


def block_cost(block: Any, width: int) -> BlockCost:
    """What one block of timm's `Block` shape multiplies per token.

    Raises:
        ValueError: for a layer that cannot be counted.
    """
    attn = block.attn
    inner = attn.num_heads * attn.head_dim
    if attn.qkv is None:
        query, apart = layer_macs(attn.q_proj, width), True
        key_value = layer_macs(attn.k_proj, width) + layer_macs(attn.v_proj, width)
    else:
        qkv, apart = layer_macs(attn.qkv, width), is_plain_linear(attn.qkv)
        query, key_value = qkv // 3, qkv - qkv // 3
    gate = getattr(attn, "gate", None)
    return BlockCost(
        query=query,
        key_value=key_value,
        output=layer_macs(attn.proj, inner) + (0 if gate is None else layer_macs(gate, width)),
        mlp=layer_macs(block.mlp, width),
        apart=apart,
    )


def embed_macs(embed: Any, sides: tuple[int, int], patches: int) -> int:
    """What the patch embedding multiplies for one image.

    Args:
        embed: timm's patch embedding, or what stands in its place.
        sides: (height, width) of the image in pixels.
        patches: how many patches the image has.

    Raises:
        ValueError: for an embedding that cannot be counted.
    """
    plain = type(embed) in (PatchEmbed, NaFlexEmbeds)
    if plain and type(embed.proj) in (nn.Conv2d, nn.Linear):
        weights: int = embed.proj.weight.numel()
        return patches * weights
    return _measured(embed, (1, _channels(embed), *sides))


def head_cost(vit: Any) -> HeadCost:
    """What the head of a timm ViT multiplies.

    Raises:
        ValueError: for a head that cannot be counted.
    """
    width, prefix = vit.embed_dim, vit.num_prefix_tokens
    once = per_token = per_pair = classes = 0
    heads = [vit.head] + ([vit.head_dist] if hasattr(vit, "head_dist") else [])
    for head in heads:
        macs = 0 if type(head) is nn.Identity else layer_macs(head, width)
        if vit.global_pool == "" and len(heads) == 1:
            per_token += macs
            once += prefix * macs
        elif type(head) is nn.Linear:
            classes += head.out_features
        else:
            once += macs
    pooler = getattr(vit, "attn_pool", None)
    if pooler is None:
        return HeadCost(once, per_token, per_pair, classes)
    kind = type(pooler).__name__
    if kind == "AttentionPoolPrr":
        return HeadCost(once, per_token, per_pair + 2 * width, classes)
    if type(pooler) is not AttentionPoolLatent:
        raise ValueError(f"the cost of a {kind} head is not known")
    token = layer_macs(pooler.kv, width) + pooler.latent_len * pooler.kv.out_features
    latent = sum(m.weight.numel() for m in (pooler.q, pooler.proj) if isinstance(m, nn.Linear))
    if pooler.mlp is not None:
        latent += layer_macs(pooler.mlp, pooler.out_features)
    # `Eva` has no such switch: its pooler attends over all tokens.
    included = getattr(vit, "pool_include_prefix", True)
    once += pooler.latent_len * latent + (prefix * token if included else 0)
    return HeadCost(once, per_token + token, per_pair, classes)


def layer_macs(layer: nn.Module, width: int) -> int:
    """What a layer on tokens of `width` channels multiplies per token.

    Raises:
        ValueError: for a layer that mixes tokens, or whose products cannot be counted.
    """
    if type(layer) is nn.Linear or _packed(layer):
        linear: Any = layer
        return int(linear.in_features * linear.out_features)
    if type(layer) in _MLPS and all(_simple(child) for child in layer.children()):
        return sum(layer_macs(c, width) for c in layer.children() if not _weightless(c))
    few, many = (_measured(layer, (1, tokens, width)) for tokens in (8, 16))
    if few % 8 or many != 2 * few:
        raise ValueError(
            f"the cost of a {type(layer).__name__} is not known: it does not grow with the tokens"
        )
    return few // 8


def _simple(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear or _packed(layer) or _weightless(layer)


def _weightless(layer: nn.Module) -> bool:
    """Whether a layer has no children and no matrices: activations, norms, dropout."""
    return (
        not _packed(layer)
        and all(p.dim() < 2 for p in layer.parameters())
        and not list(layer.children())
    )


def _packed(layer: nn.Module) -> bool:
    """Whether a layer is a quantised Linear, which keeps its weights where nothing counts them."""
    return (
        isinstance(getattr(layer, "in_features", None), int)
        and isinstance(getattr(layer, "out_features", None), int)
        and not list(layer.parameters())
    )


def _channels(embed: nn.Module) -> int:
    """The channels of the images that a patch embedding takes."""
    known = getattr(embed, "in_chans", None)
    if known is not None:
        return int(known)
    return next(m.in_channels for m in embed.modules() if isinstance(m, nn.Conv2d))


def _measured(module: nn.Module, shape: tuple[int, ...]) -> int:
    """MACs of one call, counted on tensors without values."""
    name = type(module).__name__
    first = next(module.parameters(), torch.empty(0))
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        counter = FlopCounterMode(display=False)
        # The counter does not know fused attention on every device; as two products it does.
        # Gradients are on, as it follows them from module to module.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), fake, counter:
            module(torch.empty(shape, device=first.device, dtype=first.dtype))
        macs = int(counter.get_total_flops()) // 2
    except Exception as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ValueError(f"the cost of a {name} is not known: {reason}") from None
    finally:
        for part, training in modes.items():
            part.training = training
    positions = 1 if len(shape) == 2 else shape[1]
    macs += sum(positions * layer_macs(m, 0) for m in module.modules() if _packed(m))
    if not macs:
        raise ValueError(f"the cost of a {name} is not known: PyTorch's counter sees no products")
    return macs
