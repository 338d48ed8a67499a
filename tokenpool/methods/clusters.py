"""K-Means and K-Medoids, plain and weighted by significance: the paper's own methods."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpool import kernels
from tokenpool.clustering import (
    gather_tokens,
    kmeans_means,
    matched_indices,
    matching_macs,
    segment_means,
    top_indices,
    work_features,
)
from tokenpool.methods.base import Pooled, PoolingMethod, TokenSet
from tokenpool.methods.represent import cluster_means, mean_weights, medoids_near_means
from tokenpool.options import PoolOptions

__all__ = ["KMeans", "KMedoids"]


class _Clusters(PoolingMethod):
    """What the four have in common: the features they may cluster, and the weights.

    The weights of the objective are the significance in the weighted forms; in the others how many
    original tokens each token stands for, or 1 where nobody counts (as in the paper).
    """

    kind = ""

    def __init__(self, *, weighted: bool) -> None:
        self.weighted = weighted
        self.name = ("w" if weighted else "") + self.kind

    def needs_scores(self, options: PoolOptions) -> bool:
        """To weigh tokens, or to start from the most significant ones."""
        by_scores = self.weighted or options.representative == "weighted_mean"
        return by_scores or options.start == "significance"

    def macs(self, tokens: int, k: int, width: int, features: int, options: PoolOptions) -> int:
        """Those of all pairs, and of the matching where it starts by that."""
        matching = matching_macs(tokens, k, features) if options.start == "matching" else 0
        return super().macs(tokens, k, width, features, options) + matching

    def _inputs(
        self, given: TokenSet, k: int, options: PoolOptions
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Centred features, the tokens `[B, k]` to start at, and the weights if there are any."""
        features = work_features(given.features)
        if options.start == "matching":
            start = matched_indices(features, k)
        else:
            assert given.scores is not None
            start = top_indices(given.scores.to(features.dtype), k)
        weights = given.scores if self.weighted else given.sizes
        return features, start, None if weights is None else weights.to(features.dtype)


class KMedoids(_Clusters):
    """K-Medoids, by default from the k most significant tokens (arXiv 2110.03860).

    Minimises Σᵢ wᵢ minⱼ ‖fᵢ − cⱼ‖² with every cⱼ one of the tokens. The medoids are kept as they
    are, at full width.
    """

    kind = "kmedoids"
    summary = "keeps k tokens that stand for the others"

    def reduce(self, given: TokenSet, k: int, options: PoolOptions) -> Pooled:
        """Cluster, then keep the medoids (or take the means, if the options say so)."""
        with torch.no_grad():
            features, start, weights = self._inputs(given, k, options)
            assignment, medoids = kernels.kmedoids(features, start, weights, options.iterations)
        if options.representative in (None, "medoid"):
            return Pooled(gather_tokens(given.tokens, medoids), assignment, kept=medoids)
        of_means = mean_weights(given, options.representative)
        return Pooled(cluster_means(given.tokens, assignment, k, of_means), assignment)


class KMeans(_Clusters):
    """K-Means, by default from the k most significant tokens (arXiv 2110.03860).

    Lloyd's algorithm on Σᵢ wᵢ minⱼ ‖fᵢ − cⱼ‖²; puts out the means by the same weights.
    """

    kind = "kmeans"
    summary = "puts out k means"

    def reduce(self, given: TokenSet, k: int, options: PoolOptions) -> Pooled:
        """Cluster, then average (or keep medoids, if the options say so)."""
        own = "weighted_mean" if self.weighted else "mean"
        kept = options.representative or own
        with torch.no_grad():
            features, start, weights = self._inputs(given, k, options)
        if kept == own:
            return Pooled(*kmeans_means(given.tokens, features, start, weights, options.iterations))
        with torch.no_grad():
            assignment, _ = kernels.kmeans(features, start, weights, options.iterations)
            if kept == "medoid":
                medoids = medoids_near_means(features, assignment, start, given.sizes)
        if kept == "medoid":
            return Pooled(gather_tokens(given.tokens, medoids), assignment, kept=medoids)
        of_means = mean_weights(given, options.representative)
        return Pooled(segment_means(given.tokens, assignment, start, of_means), assignment)
