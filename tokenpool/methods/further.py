"""Clustering methods beyond the paper: density peaks and agglomerative clustering."""

import torch
from torch import Tensor

from tokenpool.clustering import gather_tokens, top_indices, work_features
from tokenpool.kernels import nearest_medoid, pairwise_distances
from tokenpool.methods.base import Pooled, Reducer, TokenSet
from tokenpool.methods.represent import cluster_means, mean_weights, medoids_near_means
from tokenpool.options import PoolOptions

__all__ = ["Agglomerative", "DensityPeaks", "density_peaks", "ward_labels"]


class DensityPeaks(Reducer):
    """Density-peak clustering with k nearest neighbours (DPC-KNN, Du et al. 2016).

    A token's density is exp(−mean squared distance to its 5 nearest); the k tokens of greatest
    density · distance to the nearest denser token are centres, the others go to the nearest. The
    centres are kept (`representative` "mean" averages, as TCFormer does).
    """

    name = "dpc"
    summary = "keeps k density peaks"
    neighbours = 5

    def needs_scores(self, options: PoolOptions) -> bool:
        """Only to weigh means."""
        return options.representative == "weighted_mean"

    def features(self, options: PoolOptions) -> str:
        """What the options say, or the method's own."""
        return options.features or self.own_features

    def reduce(self, given: TokenSet, k: int, options: PoolOptions) -> Pooled:
        """Find the peaks, assign, represent."""
        with torch.no_grad():
            distances = pairwise_distances(work_features(given.features))
            peaks = density_peaks(distances, k, self.neighbours)
            assignment = nearest_medoid(distances, peaks)
        if options.representative in (None, "medoid"):
            return Pooled(gather_tokens(given.tokens, peaks), assignment)
        return Pooled(
            cluster_means(given.tokens, assignment, k, mean_weights(given, options.representative)),
            assignment,
        )

    def macs(self, tokens: int, k: int, width: int, features: int, options: PoolOptions) -> int:
        """N²·F for the distances."""
        return tokens * tokens * features


class Agglomerative(Reducer):
    """Bottom-up clustering with Ward's linkage: merge what raises the objective least.

    N − k merges in sequence, each over all pairs: exact and slow, a yardstick and not a speed-up.
    Puts out means (or medoids, if `representative` says so).
    """

    name = "agglomerative"
    summary = "merges the closest clusters until k are left"

    def needs_scores(self, options: PoolOptions) -> bool:
        """Only to weigh means."""
        return options.representative == "weighted_mean"

    def features(self, options: PoolOptions) -> str:
        """What the options say, or the method's own."""
        return options.features or self.own_features

    def reduce(self, given: TokenSet, k: int, options: PoolOptions) -> Pooled:
        """Merge, then represent."""
        with torch.no_grad():
            features = work_features(given.features)
            assignment = ward_labels(pairwise_distances(features), k)
            if options.representative == "medoid":
                # Ward leaves no cluster empty: no token has to stand in.
                anywhere = assignment.new_zeros(assignment.shape[0], k)
                medoids = medoids_near_means(features, assignment, anywhere, given.sizes)
        if options.representative == "medoid":
            return Pooled(gather_tokens(given.tokens, medoids), assignment)
        return Pooled(
            cluster_means(given.tokens, assignment, k, mean_weights(given, options.representative)),
            assignment,
        )

    def macs(self, tokens: int, k: int, width: int, features: int, options: PoolOptions) -> int:
        """N²·F for the distances."""
        return tokens * tokens * features


def density_peaks(distances: Tensor, k: int, neighbours: int) -> Tensor:
    """The k tokens `[B, k]`, ascending, of greatest density times distance to a denser one.

    Args:
        distances: squared, `[B, N, N]`.
        k: how many.
        neighbours: how many nearest others measure the density.
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


def ward_labels(distances: Tensor, k: int) -> Tensor:
    """Labels `[B, N]` in 0..k-1 of Ward's clustering, from squared distances `[B, N, N]`.

    The cost of joining two clusters, |A||B|/(|A|+|B|)·‖mean_A − mean_B‖² (here doubled), is kept up
    by the Lance–Williams recurrence. Of equal pairs the one of lowest index is joined.
    """
    batch, tokens, _ = distances.shape
    device = distances.device
    cost = distances.clone()
    cost.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    sizes = torch.ones(batch, tokens, dtype=distances.dtype, device=device)
    label = torch.arange(tokens, device=device).repeat(batch, 1)
    images = torch.arange(batch, device=device)
    for _ in range(tokens - k):
        pair = cost.flatten(1).argmin(-1)
        # Row-major order makes the first of the pair the lower index.
        low, high = pair // tokens, pair % tokens
        a, b = sizes[images, low].unsqueeze(1), sizes[images, high].unsqueeze(1)
        joint = cost[images, low, high].unsqueeze(1)
        row = (
            (a + sizes) * cost[images, low] + (b + sizes) * cost[images, high] - sizes * joint
        ) / (a + b + sizes)
        row[images, low] = torch.inf
        row[images, high] = torch.inf
        cost[images, low, :] = row
        cost[images, :, low] = row
        cost[images, high, :] = torch.inf
        cost[images, :, high] = torch.inf
        sizes[images, low] += sizes[images, high]
        label = torch.where(label == high.unsqueeze(1), low.unsqueeze(1), label)
    alive = torch.zeros_like(label).scatter_(1, label, 1)
    # Clamped for tokens that are not finite: pairs of them are never joined, and too many are left.
    return (alive.cumsum(-1) - 1).gather(1, label).clamp_max(k - 1)
