"""The Triton kernels as operators of PyTorch: with shapes for compilers and gradients for training.

Imported only where `tokenpool.gpu.usable` says so. Nothing here waits for the device, and what is
allocated depends on shapes alone, so that CUDA graphs can hold it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from tokenpool.gpu.kmeans_kernel import kmeans_kernel
from tokenpool.gpu.kmedoids_kernel import kmedoids_kernel
from tokenpool.gpu.leader_kernel import leader_kernel
from tokenpool.gpu.received_kernel import received_kernel
from tokenpool.kernels import NOTHING

__all__ = ["kmeans", "kmedoids", "leader", "received"]

# The least weight in `tokenpool.methods.leader`.
_LEAST = 1e-30
_ROWS = 32


@torch.library.custom_op("tokenpool::fused_leader", mutates_args=())
def leader(
    x: Tensor, features: Tensor, scores: Tensor | None, weights: Tensor | None, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Means `[B, k, C]`, assignment `[B, N]`, each token's share in its mean: see `gpu.leader`."""
    batch, tokens, width = x.shape
    x, features = x.contiguous(), _factor(features).contiguous()
    means, labels, shares = _outputs(x, k)
    floats = x.new_empty(batch, 4, tokens, dtype=torch.float32)
    whole = labels.new_empty(batch, 2, tokens, dtype=torch.int32)
    with _on(x):
        leader_kernel[(batch,)](
            x, features, _or(scores, x), _or(weights, x), means, labels, shares, floats, whole,
            tokens, k, width, features.shape[2],
            HAS_SCORES=scores is not None, HAS_WEIGHTS=weights is not None, LEAST=_LEAST,
            GROUP=_ROWS, WIDE=_wide(width), **_tiles(features),
        )  # fmt: skip
    return means, labels, shares


@torch.library.custom_op("tokenpool::fused_kmeans", mutates_args=())
def kmeans(
    x: Tensor, features: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means `[B, k, C]`, assignment, members and shares `[B, N]`: see `gpu.kmeans`."""
    batch, tokens, width = x.shape
    k = start.shape[1]
    x, features = x.contiguous(), features.contiguous()
    means, labels, shares = _outputs(x, k)
    members = torch.empty_like(labels)
    with _on(x):
        kmeans_kernel[(batch,)](
            x, features, start.contiguous(), _or(weights, x), means, labels, members, shares,
            x.new_empty(batch, tokens, tokens, dtype=torch.float32),
            x.new_empty(batch, 4, tokens, dtype=torch.float32),
            x.new_empty(batch, tokens, dtype=torch.int32), tokens, k, width, features.shape[2],
            iterations,
            HAS_WEIGHTS=weights is not None, NOTHING=NOTHING, SIDE=64, GROUP=_ROWS,
            WIDE=_wide(width), **_tiles(features),
        )  # fmt: skip
    return means, labels, members, shares


@torch.library.custom_op("tokenpool::fused_kmedoids", mutates_args=())
def kmedoids(
    features: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor]:
    """Assignment `[B, N]` and medoids `[B, k]` of K-Medoids: see `gpu.kmedoids`."""
    batch, tokens, size = features.shape
    features = features.contiguous()
    labels = start.new_empty(batch, tokens)
    medoids = torch.empty_like(start, memory_format=torch.contiguous_format)
    with _on(features):
        kmedoids_kernel[(batch,)](
            features, start.contiguous(), _or(weights, features), labels, medoids,
            features.new_empty(batch, tokens, tokens, dtype=torch.float32),
            features.new_empty(batch, 2, tokens, dtype=torch.float32), tokens, start.shape[1],
            size, iterations,
            HAS_WEIGHTS=weights is not None, SIDE=64, **_tiles(features),
        )  # fmt: skip
    return labels, medoids


@torch.library.custom_op("tokenpool::received", mutates_args=())
def received(
    query: Tensor, key: Tensor, scale: float, bias: Tensor | None, sizes: Tensor | None
) -> Tensor:
    """What each head's queries give to each token `[B, H, N]`; see `tokenpool.gpu.received`."""
    batch, heads, queries, head = query.shape
    tokens = key.shape[2]
    query, key = _factor(query), _factor(key)
    if query.stride(3) != 1:
        query = query.contiguous()
    if key.stride(3) != 1:
        key = key.contiguous()
    summed = query.new_empty(batch, heads, tokens, dtype=torch.float32)
    tiles = _tiles(query)
    del tiles["DEPTH"]
    one = tiles["COLUMNS"] >= tokens
    normalisers = summed if one else summed.new_empty(batch, heads, queries)
    with _on(query):
        received_kernel[(batch, heads)](
            query, key, _or(bias, query), _or(sizes, query), summed, normalisers, queries, tokens,
            heads, head, scale, *query.stride()[:3], *key.stride()[:3],
            HAS_BIAS=bias is not None, HAS_SIZES=sizes is not None, ONE_TILE=one,
            WIDTH=max(16, triton.next_power_of_2(head)), **tiles,
        )  # fmt: skip
    return summed


def _outputs(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Room for means, assignment and shares."""
    batch, tokens, width = x.shape
    labels = x.new_empty(batch, tokens, dtype=torch.long)
    return x.new_empty(batch, k, width), labels, x.new_empty(batch, tokens, dtype=torch.float32)


def _tiles(features: Tensor) -> dict[str, Any]:
    """Sizes of tiles and what else every launch names; chosen so that no register is spilt.

    Up to 256 tokens are one tile wide (128 in fp32, which needs the registers three times).
    """
    single = features.dtype == torch.float32
    columns = max(16, triton.next_power_of_2(features.shape[-2]))
    columns = min(128 if single else 256, columns)
    return {
        "ROWS": _ROWS,
        "COLUMNS": columns,
        "DEPTH": 32 if single else 64,
        "PRECISION": _precision(features),
        "num_warps": 16 if columns == 256 else 8,
        "num_stages": 2,
    }


def _wide(width: int) -> int:
    return min(128, max(16, triton.next_power_of_2(width)))


def _precision(x: Tensor) -> str:
    """How fp32 is multiplied: in three products of tf32 (22 bits) where a tensor core has them."""
    if (
        x.is_cuda
        and torch.version.hip is None
        and torch.cuda.get_device_capability(x.device)[0] > 7
    ):
        return "tf32x3"
    return "ieee"


def _factor(x: Tensor) -> Tensor:
    """What is multiplied: Triton's interpreter takes the bits of bf16 for whole numbers."""
    return x.float() if x.dtype == torch.bfloat16 and not x.is_cuda else x


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Launch on the device of `x`, which need not be the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A pointer has to be something, also where it is not used."""
    return other if tensor is None else tensor.contiguous()


@leader.register_fake
def _(
    x: Tensor, features: Tensor, scores: Tensor | None, weights: Tensor | None, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(x, k)


@kmeans.register_fake
def _(
    x: Tensor, features: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    means, labels, shares = _outputs(x, start.shape[1])
    return means, labels, torch.empty_like(labels), shares


@kmedoids.register_fake
def _(
    features: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor]:
    medoids = torch.empty_like(start, memory_format=torch.contiguous_format)
    return start.new_empty(features.shape[:2]), medoids


@received.register_fake
def _(
    query: Tensor, key: Tensor, scale: float, bias: Tensor | None, sizes: Tensor | None
) -> Tensor:
    return query.new_empty(*query.shape[:2], key.shape[2], dtype=torch.float32)


def _keep_leader(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, labels, shares = output
    ctx.save_for_backward(labels, shares)
    ctx.dtype = inputs[0].dtype


def _leader_backward(
    ctx: Any, means: Tensor, labels: Tensor | None, shares: Tensor | None
) -> tuple[Tensor, None, None, None, None]:
    return _spread(means, *ctx.saved_tensors).to(ctx.dtype), None, None, None, None


def _keep_kmeans(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, members, shares = output
    ctx.save_for_backward(members, shares, inputs[2])
    ctx.dtype = inputs[0].dtype


def _kmeans_backward(
    ctx: Any, means: Tensor, labels: Tensor | None, members: Tensor | None, shares: Tensor | None
) -> tuple[Tensor, None, None, None, None]:
    members, shares, start = ctx.saved_tensors
    index = members.clamp_min(0)
    spread = _spread(means, index, shares)
    # Centres of no members are tokens: their gradient is that token's.
    present = shares.new_zeros(start.shape).scatter_add(1, index, shares) > 0
    lone = torch.where(present.unsqueeze(2), 0, means.float())
    spread = spread.scatter_add(1, start.unsqueeze(2).expand_as(lone), lone)
    return spread.to(ctx.dtype), None, None, None, None


def _spread(means: Tensor, labels: Tensor, shares: Tensor) -> Tensor:
    """The gradient of each token: that of its mean, by its share in it. In fp32."""
    rows = means.gather(1, labels.unsqueeze(2).expand(-1, -1, means.shape[2]))
    return rows * shares.unsqueeze(2)


leader.register_autograd(_leader_backward, setup_context=_keep_leader)
kmeans.register_autograd(_kmeans_backward, setup_context=_keep_kmeans)
