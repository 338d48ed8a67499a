"""Weighted K-Medoids in one launch: distances, all iterations and the last assignment."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from tokenpool.gpu.tiles import goes_before, own_sums, write_gram, write_scaled


# Compiled once for all counts, not once a layer.
@triton.jit(do_not_specialize=["tokens", "kept", "iterations"])
def kmedoids_kernel(
    features, start, weights, labels, medoids, distances, floats, tokens, kept, size, iterations,
    HAS_WEIGHTS: tl.constexpr, SIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """See `tokenpool.kernels.kmedoids_reference`.

    Args:
        distances: `[B, N, N]` to work in.
        floats: `[B, 2, N]` to work in: squares and then costs, weights.
    """
    image = tl.program_id(0).to(tl.int64)
    features += image * tokens * size
    start += image * kept
    labels += image * tokens
    medoids += image * kept
    distances += image * tokens * tokens
    costs = floats + image * 2 * tokens
    mass = costs + tokens

    write_scaled(weights + image * tokens, mass, tokens, HAS_WEIGHTS, COLUMNS)
    write_gram(features, distances, costs, tokens, size, True, SIDE, DEPTH, PRECISION)
    for first in range(0, kept, COLUMNS):
        clusters = first + tl.arange(0, COLUMNS)
        begin = tl.load(start + clusters, mask=clusters < kept, other=0)
        tl.store(medoids + clusters, begin, mask=clusters < kept)
    tl.debug_barrier()
    nearest_medoids(distances, medoids, labels, tokens, kept, ROWS, COLUMNS)

    for _ in range(iterations):
        own_sums(distances, labels, mass, costs, tokens, ROWS, COLUMNS)
        tl.debug_barrier()
        for top in range(0, tokens, ROWS):
            rows = top + tl.arange(0, ROWS)
            ours = tl.load(labels + rows, mask=rows < tokens, other=-1)
            cost = tl.load(costs + rows, mask=rows < tokens, other=0.0)
            beaten = tl.zeros((ROWS,), tl.int32)
            for left in range(0, tokens, COLUMNS):
                columns = left + tl.arange(0, COLUMNS)
                theirs = tl.load(labels + columns, mask=columns < tokens, other=-2)
                other = tl.load(costs + columns, mask=columns < tokens, other=0.0)
                less = goes_before(-other[None, :], columns[None, :], -cost[:, None], rows[:, None])
                beaten += tl.sum((less & (theirs[None, :] == ours[:, None])).to(tl.int32), 1)
            least = (beaten == 0) & (rows < tokens)
            tl.store(medoids + ours, rows.to(tl.int64), mask=least)
        tl.debug_barrier()
        nearest_medoids(distances, medoids, labels, tokens, kept, ROWS, COLUMNS)


@triton.jit
def nearest_medoids(
    distances, medoids, labels, tokens, kept, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Each token's nearest medoid, the lowest index first; a medoid is its own."""
    for left in range(0, tokens, COLUMNS):
        columns = left + tl.arange(0, COLUMNS)
        best = tl.full((COLUMNS,), float("inf"), tl.float32)
        label = tl.zeros((COLUMNS,), tl.int32)
        for top in range(0, kept, ROWS):
            clusters = top + tl.arange(0, ROWS)
            medoid = tl.load(medoids + clusters, mask=clusters < kept, other=0)
            at = distances + medoid[:, None] * tokens + columns[None, :]
            inside = (clusters < kept)[:, None] & (columns < tokens)[None, :]
            distance = tl.load(at, mask=inside, other=float("inf"))
            least = tl.min(distance, 0)
            first = tl.min(tl.where(distance == least[None, :], clusters[:, None], kept), 0)
            label = tl.where(least < best, first, label)
            best = tl.minimum(best, least)
        tl.store(labels + columns, tl.minimum(label, kept - 1).to(tl.int64), mask=columns < tokens)
    tl.debug_barrier()
    for first in range(0, kept, COLUMNS):
        clusters = first + tl.arange(0, COLUMNS)
        medoid = tl.load(medoids + clusters, mask=clusters < kept, other=0)
        tl.store(labels + medoid, clusters.to(tl.int64), mask=clusters < kept)
    tl.debug_barrier()
