"""One clustering call: the reference implementations, and the seam for faster ones.

A kernel takes centred features `[B, N, C]`, the starting tokens `[B, k]`, weights `[B, N]` or None
and an iteration count, and returns two integer tensors. CUDA devices use the fused kernels of
`tokenpool.gpu` where these can do it. Everything in the package calls through `kmedoids` and
`kmeans` of this module, or `clustering.kmeans_means`, which has the means of the same launch.

The width C is met once, in the Gram matrix (N²·C multiply-accumulates for either algorithm): each
iteration then costs O(N²) additions, whatever k.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenpool import gpu

__all__ = ["kmeans", "kmedoids", "pairwise_distances"]

# A cluster whose weights sum to less than this share of the largest weight weighs nothing: its mean
# would be noise.
NOTHING = 1e-12


def kmedoids(
    features: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor]:
    """Weighted K-Medoids.

    Args:
        features: centred features `[B, N, C]`.
        start: the tokens `[B, k]` that begin as medoids.
        weights: how much each token counts `[B, N]`, ≥ 0; None: all alike.
        iterations: how often the medoids move.

    Returns:
        The cluster of each token `[B, N]` and the medoids `[B, k]`.
    """
    if gpu.usable(features.shape[1], features):
        return gpu.kmedoids(features, start, weights, iterations)
    kernel = _kmedoids_op if better_opaque(features) else kmedoids_reference
    return kernel(features, start, weights, iterations)


def kmeans(
    features: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor]:
    """Weighted K-Means.

    A centre is the weighted mean of its members. One that has no members, or whose members weigh
    nothing, is the token it started at.

    Args:
        features: centred features `[B, N, C]`.
        start: the tokens `[B, k]` that begin as centres.
        weights: how much each token counts `[B, N]`, ≥ 0; None: all alike.
        iterations: how often the centres move.

    Returns:
        The nearest centre of each token `[B, N]`, and the centre it is a member of `[B, N]`: the
        nearest one before the centres moved last, or −1 if they never did.
    """
    if gpu.usable(features.shape[1], features):
        # The means of the launch are of no interest here: those of the narrowest tokens there are.
        found = gpu.kmeans(features[:, :, :1], features, start, weights, iterations)
        return found[1:]
    kernel = _kmeans_op if better_opaque(features) else kmeans_reference
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
    return both.sub_(product + product.transpose(1, 2)).clamp_min_(0)


def kmedoids_reference(
    features: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor]:
    """`kmedoids` on the distance matrix, computed once; each iteration costs O(N²), whatever k.

    The distances and not the Gram matrix: with exact symmetry and zeros the two members of a pair,
    the commonest cluster there is, cost exactly the same, and the lower index wins everywhere
    instead of the rounding of the day.
    """
    relative = None if weights is None else scaled(weights)
    return medoids_of(pairwise_distances(features), start, relative, iterations)


def medoids_of(
    distances: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor]:
    """`kmedoids` from any symmetric distances `[B, N, N]`."""
    # What token j adds to the cost of a medoid i of its cluster: w_j · d(j, i), in row j.
    added = distances if weights is None else distances * weights.unsqueeze(2)
    count = start.shape[1]
    space = _work_space(distances, count)
    medoids, assignment = start, nearest_medoid(distances, start, space)
    for _ in range(iterations):
        total = segment_sum(added, assignment, count, space)
        cost = total.gather(1, assignment.unsqueeze(1)).squeeze(1)
        medoids = segment_argmin(cost, assignment, count)
        assignment = nearest_medoid(distances, medoids, space)
    return assignment, medoids


def nearest_medoid(distances: Tensor, medoids: Tensor, space: Tensor | None = None) -> Tensor:
    """Each token's nearest medoid `[B, N]`; a medoid is its own, even if another equals it.

    Args:
        distances: symmetric distances `[B, N, N]`.
        medoids: the tokens `[B, k]` to choose among.
        space: memory `[B · k, N]` to work in, which is overwritten; None: it is made anew.
    """
    batch, tokens, _ = distances.shape
    count = medoids.shape[1]
    # Whole rows of the symmetric matrix are copied far faster than its columns are gathered.
    index = flat_index(medoids, tokens)
    rows = torch.index_select(distances.flatten(0, 1), 0, index, out=space)
    own = torch.arange(count, device=medoids.device).expand(batch, count)
    return rows.view(batch, count, tokens).min(1).indices.scatter(1, medoids, own)


def segment_argmin(cost: Tensor, assignment: Tensor, k: int) -> Tensor:
    """The member of least cost of each cluster `[B, k]`; of equal ones the lowest index.

    Args:
        cost: what each token costs `[B, N]`.
        assignment: the cluster of each token `[B, N]`. The last token stands for an empty one.
        k: how many clusters there are.
    """
    batch, tokens = cost.shape
    least = cost.new_full((batch, k), torch.inf).scatter_reduce(1, assignment, cost, "amin")
    index = torch.arange(tokens, device=cost.device).expand(batch, tokens)
    # A cost that is not finite equals no minimum: such tokens must still give a valid index.
    candidate = torch.where(cost <= least.gather(1, assignment), index, tokens - 1)
    first = torch.full((batch, k), tokens - 1, dtype=torch.long, device=cost.device)
    return first.scatter_reduce(1, assignment, candidate, "amin")


def segment_sum(values: Tensor, assignment: Tensor, k: int, space: Tensor | None = None) -> Tensor:
    """The sums `[B, k, C]` of the rows that belong together.

    On a CPU rows are added in order; elsewhere, where that would be atomic and so vary from run to
    run, a one-hot matrix is multiplied.

    Args:
        values: the rows `[B, N, C]`.
        assignment: the cluster of each row `[B, N]`.
        k: how many clusters there are.
        space: memory `[B · k, C]` that a CPU puts the sums into; None: it is made anew.
    """
    if better_opaque(values):
        summed: Tensor = _segment_sum_op(values, assignment, k)
        return summed
    batch, _, width = values.shape
    if values.device.type == "cpu":
        sums = values.new_zeros(batch * k, width) if space is None else space.zero_()
        sums.index_add_(0, flat_index(assignment, k), values.flatten(0, 1))
        return sums.view(batch, k, width)
    clusters = torch.arange(k, device=values.device).view(1, k, 1)
    with torch.autocast(values.device.type, enabled=False):
        return torch.bmm((assignment.unsqueeze(1) == clusters).to(values.dtype), values)


def _work_space(square: Tensor, k: int) -> Tensor | None:
    """A place `[B · k, N]` for what each iteration makes of `square [B, N, N]`.

    Fresh memory of this size has to be mapped page by page, which takes longer than to fill it. A
    compiler finds such places by itself.
    """
    batch, tokens, _ = square.shape
    return None if torch.compiler.is_compiling() else square.new_empty(batch * k, tokens)


def flat_index(index: Tensor, size: int) -> Tensor:
    """Indices `[B, n]` into the rows of each of B matrices of `size` rows, for all stacked."""
    offset = torch.arange(index.shape[0], device=index.device) * size
    return (index + offset.unsqueeze(1)).flatten()


def kmeans_reference(
    features: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor]:
    """`kmeans` as Lloyd's algorithm on the Gram matrix.

    A centre is a mixture of tokens, so its product with a token is the same mixture of a row of the
    Gram matrix: no centre is ever formed.
    """
    batch, tokens, _ = features.shape
    count = start.shape[1]
    product = gram(features)
    weighted = product
    if weights is None:
        weights = features.new_ones(batch, tokens)
    else:
        weights = scaled(weights)
        weighted = product * weights.unsqueeze(2)
    # ‖x − c‖² less ‖x‖², which does not matter to x, for the centres as they start: −2·x·c + ‖c‖².
    space = _work_space(product, count)
    rows = product.flatten(0, 1).index_select(0, flat_index(start, tokens))
    square = product.diagonal(dim1=1, dim2=2).gather(1, start)
    begin = rows.view(batch, count, tokens).mul_(-2).add_(square.unsqueeze(2))
    members = torch.full_like(start[:, :1], -1).expand(batch, tokens)
    assignment = begin.min(1).indices
    for _ in range(iterations):
        members = assignment
        mass = weights.new_zeros(batch, count).scatter_add(1, members, weights)
        present = mass > NOTHING
        inverse = torch.where(present, 1 / mass, 0)
        inner = segment_sum(weighted, members, count, space)
        own = inner.gather(1, members.unsqueeze(1)).squeeze(1) * weights
        square = torch.zeros_like(mass).scatter_add(1, members, own) * inverse.square()
        out = None if space is None else inner
        distance = torch.addcmul(square.unsqueeze(2), inner, -2 * inverse.unsqueeze(2), out=out)
        distance = torch.where(present.unsqueeze(2), distance, begin, out=out)
        assignment = distance.min(1).indices
    return assignment, members


def scaled(weights: Tensor) -> Tensor:
    """Weights over their largest: equal ones become exactly 1, so they change nothing at all."""
    largest = weights.amax(-1, keepdim=True)
    return torch.where(largest > 0, weights / largest, weights)


def better_opaque(features: Tensor) -> bool:
    """Whether a compiler should leave sums over clusters, and all that is made of them, alone.

    For a CPU, inductor writes them as atomic additions one by one: DeiT-S with K-Medoids came out
    slower than uncompiled (1.15 against 1.33 times the dense model's speed; left alone, 1.34). An
    exported program has to run without this package.
    """
    return (
        features.device.type == "cpu"
        and torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
    )


@torch.library.custom_op("tokenpool::kmedoids", mutates_args=())
def _kmedoids_op(
    features: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor]:
    """`kmedoids_reference` as one operator."""
    assignment, medoids = kmedoids_reference(features, start, weights, iterations)
    # An operator must not give back its input, as no iterations at all would.
    return assignment, medoids.clone() if medoids is start else medoids


@torch.library.custom_op("tokenpool::kmeans", mutates_args=())
def _kmeans_op(
    features: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor]:
    """`kmeans_reference` as one operator."""
    assignment, members = kmeans_reference(features, start, weights, iterations)
    # What was expanded shares memory between rows, and the last two may be one and the same.
    return assignment, members.clone(memory_format=torch.contiguous_format)


@torch.library.custom_op("tokenpool::segment_sum", mutates_args=())
def _segment_sum_op(values: Tensor, assignment: Tensor, k: int) -> Tensor:
    """`segment_sum` as one operator."""
    return segment_sum(values, assignment, k)


@_segment_sum_op.register_fake
def _(values: Tensor, assignment: Tensor, k: int) -> Tensor:
    return values.new_empty(values.shape[0], k, values.shape[2])


def _keep_assignment(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _segment_sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (assignment,) = ctx.saved_tensors
    rows = assignment.unsqueeze(2).expand(-1, -1, grad.shape[2])
    return grad.gather(1, rows), None, None


_segment_sum_op.register_autograd(_segment_sum_backward, setup_context=_keep_assignment)


@_kmedoids_op.register_fake
def _(
    features: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor]:
    return start.new_empty(features.shape[:2]), torch.empty_like(start)


@_kmeans_op.register_fake
def _(
    features: Tensor, start: Tensor, weights: Tensor | None, iterations: int
) -> tuple[Tensor, Tensor]:
    return start.new_empty(features.shape[:2]), start.new_empty(features.shape[:2])
