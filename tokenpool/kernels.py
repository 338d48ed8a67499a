"""One clustering call: the reference implementations, and the seam for faster ones.

A kernel takes centred features `[B, N, C]`, the starting tokens `[B, k]`, weights `[B, N]` or None
and an iteration count, and returns integer tensors (and, for K-Means, the matrix whose rows average
the tokens). `register` puts another implementation in for one device type; everything in the
package calls through `kmedoids` and `kmeans` of this module.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["kmeans", "kmedoids", "pairwise_distances", "register", "unregister"]

Kernel = Callable[[Tensor, Tensor, Tensor | None, int], tuple[Tensor, Tensor]]

_REGISTERED: dict[tuple[str, str], Kernel] = {}


def register(name: str, device_type: str, kernel: Kernel) -> None:
    """Use `kernel` for "kmedoids" or "kmeans" calls on tensors of `device_type` ("cuda", …)."""
    if name not in ("kmedoids", "kmeans"):
        raise ValueError(f"there is no clustering kernel {name!r}: use 'kmedoids' or 'kmeans'")
    _REGISTERED[name, device_type] = kernel


def unregister(name: str, device_type: str) -> None:
    """Go back to the reference implementation."""
    _REGISTERED.pop((name, device_type), None)


def kmedoids(
    features: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor]:
    """Assignment `[B, N]` and medoids `[B, k]` of weighted K-Medoids from `start`."""
    kernel = _REGISTERED.get(("kmedoids", features.device.type), kmedoids_reference)
    return kernel(features, start, weights, iterations)


def kmeans(
    features: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor]:
    """Assignment `[B, N]` and mixing `[B, k, N]` of weighted K-Means; centres = mixing @ tokens."""
    kernel = _REGISTERED.get(("kmeans", features.device.type), kmeans_reference)
    return kernel(features, start, weights, iterations)


def gram(features: Tensor) -> Tensor:
    """Inner products `[B, N, N]` of the tokens, outside autocast."""
    with torch.autocast(features.device.type, enabled=False):
        return torch.bmm(features, features.transpose(1, 2))


def pairwise_distances(features: Tensor) -> Tensor:
    """Squared L2 distances `[B, N, N]`: symmetric, ≥ 0, with a diagonal of exact zeros.

    Taking both squares from the product's own diagonal and adding the product to its transpose
    makes all three hold bit for bit, whatever order the matrix product summed in.
    """
    product = gram(features)
    square = product.diagonal(dim1=1, dim2=2)
    both = square.unsqueeze(2) + square.unsqueeze(1)
    return (both - (product + product.transpose(1, 2))).clamp_min(0)


def kmedoids_reference(
    features: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor]:
    """K-Medoids on the distance matrix, computed once; each iteration costs O(N²)."""
    return medoids_of(pairwise_distances(features), start, _scaled(weights), iterations)


def medoids_of(
    distances: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor]:
    """K-Medoids from any symmetric distances `[B, N, N]`; see `kmedoids`."""
    # Weight of member j times distance (i, j): what a medoid's cost sums over its cluster.
    weighted = distances if weights is None else distances * weights.unsqueeze(1)
    medoids = start
    assignment = nearest_medoid(distances, medoids)
    for _ in range(iterations):
        together = assignment.unsqueeze(2) == assignment.unsqueeze(1)
        cost = torch.where(together, weighted, 0).sum(-1)
        medoids = segment_argmin(cost, assignment, start.shape[1])
        assignment = nearest_medoid(distances, medoids)
    return assignment, medoids


def nearest_medoid(distances: Tensor, medoids: Tensor) -> Tensor:
    """Each token's nearest medoid `[B, N]`; a medoid is its own, even if another equals it."""
    batch, tokens, _ = distances.shape
    count = medoids.shape[1]
    columns = distances.gather(2, medoids.unsqueeze(1).expand(batch, tokens, count))
    own = torch.arange(count, device=medoids.device).expand(batch, count)
    return columns.argmin(-1).scatter(1, medoids, own)


def segment_argmin(cost: Tensor, assignment: Tensor, k: int) -> Tensor:
    """For each of k non-empty clusters the member of least cost `[B, k]`, lowest index first."""
    batch, tokens = cost.shape
    least = cost.new_full((batch, k), torch.inf).scatter_reduce(1, assignment, cost, "amin")
    index = torch.arange(tokens, device=cost.device).expand(batch, tokens)
    # A cost that is not finite equals no minimum: such tokens must still give a valid index.
    candidate = torch.where(cost <= least.gather(1, assignment), index, tokens - 1)
    first = torch.full((batch, k), tokens - 1, dtype=torch.long, device=cost.device)
    return first.scatter_reduce(1, assignment, candidate, "amin")


def kmeans_reference(
    features: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm on the Gram matrix.

    A centre is a mixture of tokens, so its products with the tokens are the same mixture of rows of
    the Gram matrix: the width C is paid once (N²·C) and not in every iteration.
    """
    tokens, count = features.shape[1], start.shape[1]
    product = gram(features)
    weights = _scaled(weights)
    clusters = torch.arange(count, device=features.device).view(1, count, 1)
    index = torch.arange(tokens, device=features.device)
    mixing = (start.unsqueeze(2) == index).to(features.dtype)
    assignment = _nearest_mixture(product, mixing)
    for _ in range(iterations):
        member = (assignment.unsqueeze(1) == clusters).to(features.dtype)
        mass = member if weights is None else member * weights.unsqueeze(1)
        total = mass.sum(-1, keepdim=True)
        mixing = torch.where(total > 0, mass / total, mixing)
        assignment = _nearest_mixture(product, mixing)
    return assignment, mixing


def kmeans_macs(tokens: int, k: int, features: int, iterations: int) -> int:
    """MACs of `kmeans_reference` for one image."""
    return tokens * tokens * features + (iterations + 1) * k * tokens * tokens


def _nearest_mixture(product: Tensor, mixing: Tensor) -> Tensor:
    """The nearest of the centres `mixing [B, k, N]` to each token, from the Gram matrix."""
    with torch.autocast(product.device.type, enabled=False):
        inner = torch.bmm(mixing, product)
    square = (inner * mixing).sum(-1, keepdim=True)
    return (square - 2 * inner).argmin(1)


def _scaled(weights: Tensor | None) -> Tensor | None:
    """Weights over their largest: equal ones become exactly 1, so they change nothing at all."""
    if weights is None:
        return None
    largest = weights.amax(-1, keepdim=True)
    return torch.where(largest > 0, weights / largest, weights)
