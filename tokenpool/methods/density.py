"""Density-peak clustering, as TCFormer merges tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpool.clustering import gather_tokens, top_indices, work_features
from tokenpool.kernels import nearest_medoid, pairwise_distances
from tokenpool.methods.base import Pooled, PoolingMethod, TokenSet
from tokenpool.methods.represent import cluster_means, mean_weights
from tokenpool.options import PoolOptions

__all__ = ["DensityPeaks", "density_peaks"]


class DensityPeaks(PoolingMethod):
    """Density-peak clustering with k nearest neighbours (DPC-KNN, Du et al. 2016).

    A token's density is exp(−mean squared distance to its 5 nearest); the k tokens of greatest
    density · distance to the nearest denser token are centres, the others go to the nearest. The
    centres are kept (`representative` "mean" averages, as TCFormer does).
    """

    name = "dpc"
    summary = "keeps k density peaks"
    scores_for = "means"
    neighbours = 5

    def reduce(self, given: TokenSet, k: int, options: PoolOptions) -> Pooled:
        """Find the peaks, assign, represent."""
        with torch.no_grad():
            distances = pairwise_distances(work_features(given.features))
            peaks = density_peaks(distances, k, self.neighbours)
            assignment = nearest_medoid(distances, peaks)
        if options.representative in (None, "medoid"):
            return Pooled(gather_tokens(given.tokens, peaks), assignment, kept=peaks)
        return Pooled(
            cluster_means(given.tokens, assignment, k, mean_weights(given, options.representative)),
            assignment,
        )


def density_peaks(distances: Tensor, k: int, neighbours: int) -> Tensor:
    """The k tokens `[B, k]`, ascending, of greatest density times distance to a denser one.

    Args:
        distances: squared distances `[B, N, N]`.
        k: how many peaks.
        neighbours: how many of the nearest others measure the density.
    """
    tokens = distances.shape[1]
    near = distances.topk(min(neighbours + 1, tokens), dim=-1, largest=False).values
    # In the logarithm: exp(−d) of ViT features underflows to 0 for all of them.
    spread = near.mean(-1)
    index = torch.arange(tokens, device=distances.device)
    ahead = spread.unsqueeze(1) < spread.unsqueeze(2)
    tied = spread.unsqueeze(1) == spread.unsqueeze(2)
    denser = ahead | (tied & (index.unsqueeze(0) < index.unsqueeze(1)))
    far = distances.amax(-1)
    gap = torch.where(denser, distances, torch.inf).amin(-1)
    gap = torch.where(gap.isinf(), far, gap)
    scale = spread.mean(-1, keepdim=True).clamp_min(1e-30)
    return top_indices(gap.clamp_min(1e-30).log() - spread / scale, k)
