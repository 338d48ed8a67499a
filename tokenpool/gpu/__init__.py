"""Fused Triton kernels for CUDA devices: where they are used, and how they are called.

`usable` is the one place that decides. Everything has a reference in plain PyTorch, which is what
runs where this says no; results are the same, assignments to the last token. Triton is imported at
the first call on such a device, and a machine without it never notices.
"""

from __future__ import annotations

import importlib
import importlib.util
import os

import torch
from torch import Tensor

__all__ = ["LARGEST", "kmeans", "kmedoids", "leader", "received", "usable"]

# Beyond this many tokens the N² comparisons of one program take longer than a sort would.
LARGEST = 1024
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# What `_runs_on` found out.
_RUNS: dict[str, bool] = {}


def usable(tokens: int, *tensors: Tensor) -> bool:
    """Whether the kernels can be used: on CUDA with Triton, up to `LARGEST` tokens, no fp64.

    They cannot while a model is exported: what is exported has to run without this package.
    """
    if tokens > LARGEST or torch.compiler.is_exporting():
        return False
    return all(
        tensor.dtype in _DTYPES and tensor.numel() > 0 and _runs_on(tensor.device.type)
        for tensor in tensors
    )


def leader(
    x: Tensor, features: Tensor, scores: Tensor | None, weights: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    """Means `[B, k, C]` and assignment `[B, N]` of `tokenpool.methods.leader`, in one launch.

    Differentiable with respect to `x`.

    Args:
        x: the tokens `[B, N, C]`.
        features: the features that are compared `[B, N, F]`, of any length.
        scores: the significance `[B, N]`, or None.
        weights: how much each token counts in a mean `[B, N]`, or None.
        k: how many tokens are kept.
    """
    from tokenpool.gpu import operators

    means, assignment, _ = operators.leader(x, features, scores, weights, k)
    return means, assignment


def kmeans(
    x: Tensor, features: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Means `[B, k, C]`, assignment and members `[B, N]` of K-Means, in one launch.

    As `kernels.kmeans` and `clustering.segment_means`; differentiable with respect to `x`.

    Args:
        x: the tokens `[B, N, C]` that are averaged.
        features: the features `[B, N, F]` that are clustered.
        start: the tokens `[B, k]` to start at.
        weights: how much each token counts `[B, N]`, or None.
        iterations: how often the means move.
    """
    from tokenpool.gpu import operators

    means, assignment, members, _ = operators.kmeans(x, features, start, weights, iterations)
    return means, assignment, members


def kmedoids(
    features: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor]:
    """Assignment `[B, N]` and medoids `[B, k]`, in one launch.

    Args:
        features: as in `kernels.kmedoids`, and so are the others.
        start: the tokens `[B, k]` to start at.
        weights: how much each token counts `[B, N]`, or None.
        iterations: how often the medoids move.
    """
    from tokenpool.gpu import operators

    assignment, medoids = operators.kmedoids(features, start, weights, iterations)
    return assignment, medoids


def received(
    query: Tensor,
    key: Tensor,
    scale: float,
    log_sizes: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """The attention each token receives from all queries and heads `[B, N]`, fp32, no gradient.

    Args:
        query: the queries `[B, H, n, D]`.
        key: the keys `[B, H, N, D]`.
        scale: what their products are multiplied by.
        log_sizes: what is added to the logits of each key `[B, N]`, or None.
        sizes: as how many queries each query counts `[B, n]`, or None.
    """
    from tokenpool.gpu import operators

    by_head: Tensor = operators.received(query.detach(), key.detach(), scale, log_sizes, sizes)
    return by_head.sum(1)


@torch.compiler.assume_constant_result
def _runs_on(device_type: str) -> bool:
    """Whether Triton runs there; with its interpreter, which tests use, on CPUs too.

    Loads the operators at the first call, so that a compiler that comes by finds them.
    """
    if device_type not in _RUNS:
        interpreted = device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
        runs = device_type == "cuda" or interpreted
        _RUNS[device_type] = runs and importlib.util.find_spec("triton") is not None
        if _RUNS[device_type]:
            importlib.import_module("tokenpool.gpu.operators")
    return _RUNS[device_type]
