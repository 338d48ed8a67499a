"""Measurements that say why and where pooling works: low-pass filtering, redundancy, error by K.

All are taken on the dense form of a model: a pooled one is analysed as if it were not, and given
back as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenpool.attention import AttentionRecord
from tokenpool.clustering import reconstruction_error
from tokenpool.methods import method as method_named
from tokenpool.methods.base import TokenSet
from tokenpool.options import PoolOptions
from tokenpool.patches import patches_of
from tokenpool.pooling import check_model, pool, unpooled
from tokenpool.schedule import Schedule
from tokenpool.vit import PooledBlock

__all__ = ["ErrorPoint", "LowPass", "error_by_k", "high_frequency_share", "low_pass", "mean_cosine"]


@dataclass(frozen=True)
class LowPass:
    """What one block's attention does to the patch tokens it filters.

    Attributes:
        layer: the number of the block, from 1.
        high_before: share of high-frequency energy of the tokens that attention is given.
        high_after: the same of what attention puts out, before the residual is added.
        cosine_before: mean pairwise cosine of the tokens that attention is given.
        cosine_after: the same of what attention puts out.
        high_tokens: share of high-frequency energy of the tokens after the whole block.
        cosine_tokens: mean pairwise cosine of the tokens after the whole block.
    """

    layer: int
    high_before: float
    high_after: float
    cosine_before: float
    cosine_after: float
    high_tokens: float
    cosine_tokens: float


@dataclass(frozen=True)
class ErrorPoint:
    """Reconstruction error of one method at one layer and K.

    Attributes:
        layer: the number of the block, from 1.
        method: one of `tp.METHODS`.
        k: how many tokens the method really keeps.
        error: Σᵢ minⱼ ‖fᵢ − f̂ⱼ‖² over Σᵢ ‖fᵢ − mean‖², averaged over images: 0 loses nothing, 1 as
            much as keeping the mean alone.
    """

    layer: int
    method: str
    k: int
    error: float


def high_frequency_share(tokens: Tensor, grid: tuple[int, int], cutoff: float = 0.25) -> Tensor:
    """The share of the tokens' spatial energy at high frequencies `[B]`.

    The energy is that of the two-dimensional discrete Fourier transform over the token grid, summed
    over channels, without the constant term; high is where either frequency exceeds `cutoff`
    cycles per token (0.5 is the highest there is). 0 where the tokens do not vary.

    Args:
        tokens: the tokens of a grid `[B, rows · columns, C]`.
        grid: (rows, columns) of the grid.
        cutoff: the frequency in cycles per token above which is high.
    """
    rows, columns = grid
    image = tokens.to(torch.promote_types(tokens.dtype, torch.float32)).unflatten(1, grid)
    energy = torch.fft.fft2(image, dim=(1, 2)).abs().square().sum(-1)
    down = torch.fft.fftfreq(rows, device=tokens.device).abs().unsqueeze(1)
    across = torch.fft.fftfreq(columns, device=tokens.device).abs()
    energy[:, 0, 0] = 0
    total = energy.sum((1, 2))
    high = (energy * (torch.maximum(down, across) > cutoff)).sum((1, 2))
    return torch.where(total > 0, high / total, 0)


def mean_cosine(tokens: Tensor) -> Tensor:
    """The mean cosine `[B]` over all pairs of different tokens of `[B, N, C]`."""
    count = tokens.shape[1]
    unit = F.normalize(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), dim=-1)
    together = unit.sum(1).square().sum(-1)
    own = unit.square().sum((1, 2))
    return (together - own) / max(1, count * (count - 1))


@torch.inference_mode()
def low_pass(model: nn.Module, batches: Iterable[Tensor], cutoff: float = 0.25) -> list[LowPass]:
    """The low-pass measurement of every block, averaged over images.

    Args:
        model: a timm ViT.
        batches: the images.
        cutoff: as in `high_frequency_share`.

    Raises:
        ValueError: for a model that cannot be pooled, or no images.
    """
    vit: Any = model
    prefix = vit.num_prefix_tokens
    sums = torch.zeros(len(check_model(model)), 6, dtype=torch.double)
    images = 0
    with unpooled(model):
        model.eval()
        seen: list[dict[str, Tensor]] = [{} for _ in vit.blocks]
        handles = []
        for block, values in zip(vit.blocks, seen, strict=True):
            handles += [
                block.attn.register_forward_hook(_keep(values, "before", "after")),
                block.register_forward_hook(_keep(values, None, "tokens")),
            ]
        try:
            for batch in batches:
                grid = patches_of(model).grid_at((batch.shape[-2], batch.shape[-1]))
                vit.forward_features(batch)
                for layer, values in enumerate(seen):
                    patches = [values[n][:, prefix:] for n in ("before", "after", "tokens")]
                    high = [high_frequency_share(x, grid, cutoff).sum() for x in patches]
                    alike = [mean_cosine(x).sum() for x in patches]
                    sums[layer] += torch.stack(high + alike).double().cpu()
                images += len(batch)
        finally:
            for handle in handles:
                handle.remove()
    if not images:
        raise ValueError("there are no images to measure on")
    return [
        LowPass(layer, h0, h1, c0, c1, h2, c2)
        for layer, (h0, h1, h2, c0, c1, c2) in enumerate((sums / images).tolist(), start=1)
    ]


@torch.inference_mode()
def error_by_k(
    model: nn.Module,
    batches: Iterable[Tensor],
    ks: Sequence[int],
    methods: Sequence[str],
    layers: Sequence[int] | None = None,
    **options: Any,
) -> list[ErrorPoint]:
    """Reconstruction error of pooling the dense model's tokens after each block, by method and K.

    Args:
        model: a timm ViT.
        batches: the images.
        ks: counts to pool to; those that leave nothing to pool are left out.
        methods: some of `tp.METHODS`. Where one cannot make a count, what it makes is reported.
        layers: the blocks to measure, from 1; None: all.
        **options: fields of `PoolOptions`.

    Raises:
        ValueError: for a model that cannot be pooled, an unknown method or option, or no images.
    """
    chosen = PoolOptions.of(**options)
    sums: dict[tuple[int, str, int], float] = {}
    images = 0
    for batch in batches:
        images += len(batch)
        for layer, given in enumerate(_token_sets(model, batch), start=1):
            if layers is not None and layer not in layers:
                continue
            centred = given.tokens - given.tokens.mean(1, keepdim=True)
            spread = centred.square().sum((1, 2))
            for name in methods:
                strategy = method_named(name)
                features = given.features if strategy.features(chosen) == "keys" else given.tokens
                done = set()
                for k in ks:
                    if not 1 <= k < given.tokens.shape[1]:
                        continue
                    kept, _ = strategy.realise(given.tokens.shape[1], k, given.grid)
                    if kept in done:
                        continue
                    done.add(kept)
                    pooled = strategy.reduce(given._replace(features=features), kept, chosen)
                    error = reconstruction_error(given.tokens, pooled.tokens) / spread
                    key = (layer, name, kept)
                    sums[key] = sums.get(key, 0.0) + float(error.sum())
    if not images:
        raise ValueError("there are no images to measure on")
    return [ErrorPoint(*key, total / images) for key, total in sorted(sums.items())]


def _token_sets(model: nn.Module, batch: Tensor) -> list[TokenSet]:
    """What a pooling layer after each block of the dense model would be given, keys as features."""
    vit: Any = model
    prefix = vit.num_prefix_tokens
    found: list[TokenSet] = []
    with unpooled(model):
        model.eval()
        embed = patches_of(model)
        grid = embed.grid_at((batch.shape[-2], batch.shape[-1]))
        pool(model, Schedule.dense(len(vit.blocks), embed.number))

        def after(
            block: PooledBlock, inputs: tuple[Tensor, ...], said: dict[str, Any], output: Tensor
        ) -> None:
            record = AttentionRecord(want_received=True, want_keys=True)
            block.attend(inputs[0], record, said.get("rope"))
            assert record.scores is not None and record.keys is not None
            found.append(
                TokenSet(
                    output[:, prefix:],
                    record.keys[:, prefix:],
                    record.scores[:, prefix:],
                    None,
                    grid,
                )
            )

        handles = [block.register_forward_hook(after, with_kwargs=True) for block in vit.blocks]
        try:
            vit.forward_features(batch)
        finally:
            for handle in handles:
                handle.remove()
    return found


def _keep(values: dict[str, Tensor], before: str | None, after: str) -> Any:
    """A forward hook that keeps a module's first input and its output under those names."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if before is not None:
            values[before] = inputs[0]
        values[after] = output

    return hook
