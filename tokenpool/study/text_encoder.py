"""The operator on text: a `torch.nn.TransformerEncoder` with K-Medoids between its layers.

Sentences of a batch differ in length, so padding must neither be counted nor change the result:
padded tokens are infinitely far from real ones and weigh nothing. A sentence with fewer real tokens
than k keeps them all, and padding fills the rest.

    encoder = torch.nn.TransformerEncoder(layer, num_layers=4)
    pooled = PooledEncoder(encoder, keep=(48, 32, 24, 16))
    tokens, padding = pooled(x, src_key_padding_mask=padding)   # [B, 16, C], [B, 16]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokenpool.clustering import gather_tokens, top_indices
from tokenpool.kernels import medoids_of, pairwise_distances
from tokenpool.schedule import Schedule

__all__ = ["PooledEncoder", "masked_kmedoids"]


class PooledEncoder(nn.Module):
    """A transformer encoder that keeps the tokens of highest worth after each layer.

    Shares the encoder's layers and weights. Batches first.

    Args:
        encoder: an encoder of `torch.nn.TransformerEncoderLayer`s with `batch_first=True`.
        keep: tokens kept after each layer, not counting the first `prefix` ones; more than there
            are keeps all.
        prefix: how many tokens in front are never pooled (a class token), nor padding.
        weighted: whether tokens are weighed by the attention they receive.
        iterations: how often K-Medoids moves its medoids.

    Raises:
        ValueError: for another kind of layer, or a `keep` that does not fit.
    """

    def __init__(
        self,
        encoder: nn.TransformerEncoder,
        keep: Sequence[int],
        *,
        prefix: int = 0,
        weighted: bool = True,
        iterations: int = 5,
    ) -> None:
        super().__init__()
        for index, layer in enumerate(encoder.layers, start=1):
            if type(layer) is not nn.TransformerEncoderLayer or not layer.self_attn.batch_first:
                raise ValueError(
                    f"layer {index} is a {type(layer).__name__}: only TransformerEncoderLayer with "
                    "batch_first=True can be pooled"
                )
        self.keep = Schedule(keep)
        self.keep.check(len(encoder.layers), None)
        self.layers, self.norm = encoder.layers, encoder.norm
        self.prefix, self.weighted, self.iterations = prefix, weighted, iterations

    def forward(
        self, x: Tensor, src_key_padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode `x [B, N, C]`.

        Args:
            x: the embedded tokens.
            src_key_padding_mask: true where there is padding `[B, N]`; None: there is none.

        Returns:
            Tokens `[B, prefix + k, C]` and their padding mask `[B, prefix + k]`.
        """
        padding = src_key_padding_mask
        if padding is None:
            padding = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        for layer, k in zip(self.layers, self.keep, strict=True):
            x, scores = _run(layer, x, padding)
            x, padding = self._pool(x, padding, scores, k)
        return (x if self.norm is None else self.norm(x)), padding

    def _pool(self, x: Tensor, padding: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The tokens that stay, and which of them are padding."""
        prefix = self.prefix
        if k >= x.shape[1] - prefix:
            return x, padding
        with torch.no_grad():
            medoids, _ = masked_kmedoids(
                x[:, prefix:],
                k,
                padding[:, prefix:],
                scores[:, prefix:],
                weighted=self.weighted,
                iterations=self.iterations,
            )
        kept = gather_tokens(x[:, prefix:], medoids)
        masked = padding[:, prefix:].gather(1, medoids)
        return torch.cat((x[:, :prefix], kept), 1), torch.cat((padding[:, :prefix], masked), 1)


def masked_kmedoids(
    x: Tensor,
    k: int,
    padding: Tensor,
    scores: Tensor,
    *,
    weighted: bool = True,
    iterations: int = 5,
) -> tuple[Tensor, Tensor]:
    """K-Medoids among the real tokens of each sentence.

    Args:
        x: the tokens `[B, N, C]`.
        k: how many medoids, 1..N.
        padding: true where there is padding `[B, N]`.
        scores: the significance `[B, N]`; the k highest real tokens start as medoids.
        weighted: whether the scores weigh the members too.
        iterations: how often medoids move.

    Returns:
        Medoids `[B, k]` and assignment `[B, N]`. Where a sentence has fewer than k real tokens all
        of them are medoids, and the other medoids are padding.
    """
    real = ~padding
    # Padding takes no part in the centring either: it must not change a single bit.
    share = real.unsqueeze(-1).to(x.dtype)
    mean = (x * share).sum(1, keepdim=True) / share.sum(1, keepdim=True).clamp_min(1)
    features = torch.where(real.unsqueeze(-1), x - mean, 0)
    distances = pairwise_distances(features.to(torch.promote_types(x.dtype, torch.float32)))
    # Farther than any two real tokens, but finite: it is multiplied by weights of 0.
    far = 4 * distances.amax((1, 2), keepdim=True) + 1
    mixed = real.unsqueeze(1) != real.unsqueeze(2)
    distances = torch.where(mixed, far, distances)
    start = top_indices(torch.where(real, scores, -torch.inf), k)
    weights = real.to(distances.dtype)
    if weighted:
        relative = torch.where(real, scores, 0)
        # A real token always weighs something: else padding would stand for it as well as itself.
        weights *= (relative / relative.amax(-1, keepdim=True).clamp_min(1e-30)).clamp_min(1e-6)
    assignment, medoids = medoids_of(distances, start, weights, iterations)
    return medoids, assignment


def _run(layer: Any, x: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    """One encoder layer, and the attention each token receives from the real ones `[B, N]`."""

    def attend(y: Tensor) -> tuple[Tensor, Tensor]:
        out, attention = layer.self_attn(
            y, y, y, key_padding_mask=padding, need_weights=True, average_attn_weights=True
        )
        received = (attention.detach() * (~padding).unsqueeze(-1)).sum(1)
        return layer.dropout1(out), received

    def feed(y: Tensor) -> Tensor:
        out: Tensor = layer.dropout2(
            layer.linear2(layer.dropout(layer.activation(layer.linear1(y))))
        )
        return out

    if layer.norm_first:
        out, scores = attend(layer.norm1(x))
        x = x + out
        return x + feed(layer.norm2(x)), scores
    out, scores = attend(x)
    x = layer.norm1(x + out)
    return layer.norm2(x + feed(x)), scores
