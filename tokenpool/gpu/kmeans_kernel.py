"""Weighted K-Means in one launch: inner products, all iterations, assignment and means."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from tokenpool.gpu.tiles import own_sums, write_gram, write_means, write_scaled


# Compiled once for all counts, not once a layer.
@triton.jit(do_not_specialize=["tokens", "kept", "iterations"])
def kmeans_kernel(
    x, features, start, weights, means, labels, members, shares, gram, floats, order, tokens, kept,
    width, size, iterations,
    HAS_WEIGHTS: tl.constexpr, NOTHING: tl.constexpr, SIDE: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """See `tokenpool.kernels.kmeans_reference`: no centre is formed until the means at the end.

    Args:
        gram: `[B, N, N]` to work in.
        floats: `[B, 4, N]` to work in: own sums, weights, and for the clusters 1 / mass and ‖c‖².
        order: `[B, N]` to work in.
    """
    image = tl.program_id(0).to(tl.int64)
    x += image * tokens * width
    features += image * tokens * size
    start += image * kept
    means += image * kept * width
    labels += image * tokens
    members += image * tokens
    shares += image * tokens
    gram += image * tokens * tokens
    order += image * tokens
    sums = floats + image * 4 * tokens
    mass = sums + tokens
    inverses = mass + tokens
    squares = inverses + tokens

    write_scaled(weights + image * tokens, mass, tokens, HAS_WEIGHTS, COLUMNS)
    write_gram(features, gram, sums, tokens, size, False, SIDE, DEPTH, PRECISION)
    for first in range(0, kept, COLUMNS):
        clusters = first + tl.arange(0, COLUMNS)
        # No mass: as at the start, each centre is a token.
        tl.store(inverses + clusters, tl.zeros((COLUMNS,), tl.float32), mask=clusters < kept)
    for left in range(0, tokens, COLUMNS):
        columns = left + tl.arange(0, COLUMNS)
        none = tl.full((COLUMNS,), -1, tl.int64)
        tl.store(members + columns, none, mask=columns < tokens)
    tl.debug_barrier()
    nearest_means(
        gram, mass, start, members, labels, inverses, squares, tokens, kept,
        ROWS, COLUMNS, DEPTH, False, PRECISION,
    )  # fmt: skip

    for _ in range(iterations):
        for left in range(0, tokens, COLUMNS):
            columns = left + tl.arange(0, COLUMNS)
            label = tl.load(labels + columns, mask=columns < tokens, other=-1)
            tl.store(members + columns, label, mask=columns < tokens)
        own_sums(gram, labels, mass, sums, tokens, ROWS, COLUMNS)
        tl.debug_barrier()
        for top in range(0, kept, ROWS):
            clusters = top + tl.arange(0, ROWS)
            total = tl.zeros((ROWS,), tl.float32)
            square = tl.zeros((ROWS,), tl.float32)
            for left in range(0, tokens, COLUMNS):
                columns = left + tl.arange(0, COLUMNS)
                label = tl.load(members + columns, mask=columns < tokens, other=-1)
                weight = tl.load(mass + columns, mask=columns < tokens, other=0.0)
                own = tl.load(sums + columns, mask=columns < tokens, other=0.0) * weight
                ours = label[None, :] == clusters[:, None]
                total += tl.sum(tl.where(ours, weight[None, :], 0.0), 1)
                square += tl.sum(tl.where(ours, own[None, :], 0.0), 1)
            present = total > NOTHING
            inverse = tl.div_rn(1.0 + tl.zeros_like(total), tl.where(present, total, 1.0))
            inverse = tl.where(present, inverse, 0.0)
            tl.store(inverses + clusters, inverse, mask=clusters < kept)
            tl.store(squares + clusters, square * inverse * inverse, mask=clusters < kept)
        tl.debug_barrier()
        nearest_means(
            gram, mass, start, members, labels, inverses, squares, tokens, kept,
            ROWS, COLUMNS, DEPTH, True, PRECISION,
        )  # fmt: skip

    write_means(
        x, members, mass, start, means, shares, order, tokens, kept, width,
        True, NOTHING, ROWS, COLUMNS, GROUP, WIDE,
    )  # fmt: skip


@triton.jit
def nearest_means(
    gram, weights, start, members, labels, inverses, squares, tokens, kept,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, MOVED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Each token's nearest centre by ‖c‖² − 2·x·c, the lowest index first.

    A centre of no mass is the token it started at; all are unless MOVED. The sums of rows of the
    Gram matrix are a product with a matrix of zeros and ones.
    """
    for left in range(0, tokens, COLUMNS):
        columns = left + tl.arange(0, COLUMNS)
        best = tl.full((COLUMNS,), float("inf"), tl.float32)
        label = tl.zeros((COLUMNS,), tl.int32)
        for top in range(0, kept, ROWS):
            clusters = top + tl.arange(0, ROWS)
            within = clusters < kept
            inside = within[:, None] & (columns < tokens)[None, :]
            inverse = tl.load(inverses + clusters, mask=within, other=0.0)
            lone = within & (inverse == 0.0)
            token = tl.load(start + clusters, mask=lone, other=0)
            square = tl.load(gram + token * tokens + token, mask=lone, other=0.0)
            at = gram + token[:, None] * tokens + columns[None, :]
            inner = tl.load(at, mask=lone[:, None] & inside, other=0.0)
            begin = square[:, None] - 2 * inner
            distance = begin
            if MOVED:
                total = tl.zeros((ROWS, COLUMNS), tl.float32)
                for first in range(0, tokens, DEPTH):
                    depth = first + tl.arange(0, DEPTH)
                    member = tl.load(members + depth, mask=depth < tokens, other=-1)
                    weight = tl.load(weights + depth, mask=depth < tokens, other=0.0)
                    row = gram + depth[:, None] * tokens + columns[None, :]
                    there = (depth < tokens)[:, None] & (columns < tokens)[None, :]
                    value = tl.load(row, mask=there, other=0.0) * weight[:, None]
                    ours = (clusters[:, None] == member[None, :]).to(tl.float32)
                    total = tl.dot(ours, value, total, input_precision=PRECISION)
                moved = tl.load(squares + clusters, mask=within, other=0.0)
                distance = moved[:, None] + total * (-2 * inverse)[:, None]
                distance = tl.where(lone[:, None], begin, distance)
            distance = tl.where(inside, distance, float("inf"))
            least = tl.min(distance, 0)
            lowest = tl.min(tl.where(distance == least[None, :], clusters[:, None], kept), 0)
            label = tl.where(least < best, lowest, label)
            best = tl.minimum(best, least)
        tl.store(labels + columns, tl.minimum(label, kept - 1).to(tl.int64), mask=columns < tokens)
    tl.debug_barrier()
