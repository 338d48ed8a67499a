"""Agglomerative clustering: by Ward's linkage, and as ATC publishes it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenpool.clustering import gather_tokens, work_dtype, work_features
from tokenpool.methods.base import Pooled, PoolingMethod, TokenSet
from tokenpool.methods.linkage import agglomerative_labels
from tokenpool.methods.represent import cluster_means, mean_weights, medoids_near_means
from tokenpool.options import Linkage, PoolOptions

__all__ = ["ATC", "Agglomerative"]


class Agglomerative(PoolingMethod):
    """Bottom-up clustering with Ward's linkage: merge what raises the objective least.

    The objective is that of the tokens at hand: weighing each by how many original ones it stands
    for, as its mean does, lost half as much again on DINOv2-S. Puts out means (or medoids, if
    `representative` says so); `linkage` may be another.
    """

    name = "agglomerative"
    summary = "merges the closest clusters until k are left"
    scores_for = "means"
    own_linkage: Linkage = "ward"

    def reduce(self, given: TokenSet, k: int, options: PoolOptions) -> Pooled:
        """Merge, then represent."""
        with torch.no_grad():
            features = self._compared(given.features)
            assignment = agglomerative_labels(features, k, options.linkage or self.own_linkage)
            if options.representative == "medoid":
                # No cluster is left empty: no token has to stand in.
                anywhere = assignment.new_zeros(assignment.shape[0], k)
                medoids = medoids_near_means(features, assignment, anywhere, given.sizes)
        if options.representative == "medoid":
            return Pooled(gather_tokens(given.tokens, medoids), assignment, kept=medoids)
        weights = mean_weights(given, options.representative)
        return Pooled(cluster_means(given.tokens, assignment, k, weights), assignment)

    def _compared(self, features: Tensor) -> Tensor:
        """What squared L2 distances are taken of."""
        return work_features(features)


class ATC(Agglomerative):
    """Agglomerative Token Clustering (Haurum et al., ECCV 2024).

    The distance of two tokens is one minus the cosine of their head-mean keys, that of two clusters
    the average between their tokens, or the largest or smallest (`linkage` "complete", "single").
    As published, a token that was merged before counts as one there; in the means that stand for
    clusters it weighs as many as it stands for. Attention is proportional, and tokens are pooled
    between attention and MLP. Prefix tokens are left out.
    """

    name = "atc"
    summary = "merges the closest clusters by the cosine of their keys"
    proportional = True
    needs_sizes = True
    own_features = "keys"
    own_position = "attention"
    own_linkage = "average"

    def _compared(self, features: Tensor) -> Tensor:
        """Unit vectors: half their squared distance is one minus the cosine."""
        return F.normalize(features.to(work_dtype(features)), dim=-1)
