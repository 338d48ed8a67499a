"""K-Means and K-Medoids, plain and weighted by significance: the paper's own methods."""

import torch
from torch import Tensor

from tokenpool import kernels
from tokenpool.clustering import (
    gather_tokens,
    mix_tokens,
    top_indices,
    work_features,
)
from tokenpool.methods.base import Pooled, Reducer, TokenSet, register_method
from tokenpool.options import PoolOptions

__all__ = ["KMeans", "KMedoids"]


class KMedoids(Reducer):
    """K-Medoids from the k most significant tokens (arXiv 2110.03860, section 4).

    Minimises Σᵢ wᵢ minⱼ ‖fᵢ − cⱼ‖² with every cⱼ a token; wᵢ is the significance, or 1 for the
    unweighted form. The medoids themselves are kept, at full width.
    """

    def __init__(self, name: str, *, weighted: bool) -> None:
        self.name = name
        self.weighted = weighted
        self.summary = ("significance-weighted " if weighted else "") + "K-Medoids: keeps k tokens"

    def features(self, options: PoolOptions) -> str:
        """Tokens or keys, as the options say."""
        return options.features

    def reduce(self, given: TokenSet, k: int, options: PoolOptions) -> Pooled:
        """Cluster, then keep the medoids (or the means, if the options ask for them)."""
        assert given.scores is not None
        with torch.no_grad():
            scores = given.scores.float()
            features = work_features(given.features)
            assignment, medoids = kernels.kmedoids(
                features,
                top_indices(scores, k),
                scores if self.weighted else None,
                options.iterations,
            )
        kept = options.representative or "medoid"
        if kept == "medoid":
            return Pooled(gather_tokens(given.tokens, medoids), assignment)
        weights = scores if kept == "weighted_mean" else None
        return Pooled(cluster_means(given.tokens, assignment, k, weights), assignment)

    def macs(self, tokens: int, k: int, width: int, features: int, options: PoolOptions) -> int:
        """N²·F for the distances; k·N·C if means are taken."""
        means = options.representative not in (None, "medoid")
        return tokens * tokens * features + (k * tokens * width if means else 0)


class KMeans(Reducer):
    """K-Means from the k most significant tokens (arXiv 2110.03860, section 4).

    Lloyd's algorithm on Σᵢ wᵢ minⱼ ‖fᵢ − cⱼ‖²; puts out the (weighted) means.
    """

    def __init__(self, name: str, *, weighted: bool) -> None:
        self.name = name
        self.weighted = weighted
        self.summary = ("significance-weighted " if weighted else "") + "K-Means: puts out means"

    def features(self, options: PoolOptions) -> str:
        """Tokens or keys, as the options say."""
        return options.features

    def reduce(self, given: TokenSet, k: int, options: PoolOptions) -> Pooled:
        """Cluster, then average (or keep the member nearest the mean, if the options say so)."""
        assert given.scores is not None
        kept = options.representative or ("weighted_mean" if self.weighted else "mean")
        with torch.no_grad():
            scores = given.scores.float()
            features = work_features(given.features)
            assignment, mixing = kernels.kmeans(
                features,
                top_indices(scores, k),
                scores if self.weighted else None,
                options.iterations,
            )
        if kept == "medoid":
            with torch.no_grad():
                centres = mix_tokens(features, mixing)
                distance = torch.cdist(centres, features)
                return Pooled(gather_tokens(given.tokens, distance.argmin(-1)), assignment)
        if (kept == "weighted_mean") == self.weighted:
            return Pooled(mix_tokens(given.tokens, mixing), assignment)
        weights = scores if kept == "weighted_mean" else None
        return Pooled(cluster_means(given.tokens, assignment, k, weights), assignment)

    def macs(self, tokens: int, k: int, width: int, features: int, options: PoolOptions) -> int:
        """N²·F for the Gram matrix, (T+1)·k·N² for the centres on it, k·N·C for the means."""
        steps = (options.iterations + 1) * k * tokens * tokens
        return tokens * tokens * features + steps + k * tokens * width


def cluster_means(x: Tensor, assignment: Tensor, k: int, weights: Tensor | None) -> Tensor:
    """The (weighted) mean `[B, k, C]` of each cluster of `x`; plain where members weigh nothing.

    A one-hot matrix product instead of a scatter: deterministic on every device, and exportable.
    """
    clusters = torch.arange(k, device=x.device).view(1, k, 1)
    member = (assignment.unsqueeze(1) == clusters).to(torch.promote_types(x.dtype, torch.float32))
    mass = member if weights is None else member * weights.to(member.dtype).unsqueeze(1)
    mass = torch.where(mass.sum(-1, keepdim=True) > 0, mass, member)
    return mix_tokens(x, mass / mass.sum(-1, keepdim=True).clamp_min(1e-30))


for _weighted in (False, True):
    _prefix = "w" if _weighted else ""
    register_method(KMeans(f"{_prefix}kmeans", weighted=_weighted))
    register_method(KMedoids(f"{_prefix}kmedoids", weighted=_weighted))
