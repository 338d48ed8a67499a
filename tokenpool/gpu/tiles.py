"""Steps that the Triton kernels share. One program works on one image; all sums are in fp32.

A matrix over tokens is met in tiles of ROWS × COLUMNS: few tokens are one tile wide, many are
several. What one tile finds and another needs goes through global memory (it stays in the
cache), with a barrier between.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def goes_before(score, index, than_score, than_index):
    """Whether one is ahead of another: by the higher score, of equal ones by the lower index."""
    return (score > than_score) | ((score == than_score) & (index < than_index))


@triton.jit
def products(
    features, rows, columns, tokens, size,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Inner products `[ROWS, COLUMNS]` of the tokens `rows` and `columns` of `[N, size]`."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, size, DEPTH):
        depth = first + tl.arange(0, DEPTH)
        left = tl.load(
            features + rows[:, None] * size + depth[None, :],
            mask=(rows < tokens)[:, None] & (depth < size)[None, :],
            other=0.0,
        )
        right = tl.load(
            features + columns[None, :] * size + depth[:, None],
            mask=(columns < tokens)[None, :] & (depth < size)[:, None],
            other=0.0,
        )
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total


@triton.jit
def write_gram(
    features, matrix, squares, tokens, size,
    DISTANCES: tl.constexpr, SIDE: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Inner products `matrix [N, N]`, or squared distances, symmetric to the last bit.

    Half of the tiles are computed, each is written twice. Distances are ≥ 0 with a diagonal of
    exact zeros, as `tokenpool.kernels.pairwise_distances` has them.
    """
    lane = tl.arange(0, SIDE)
    if DISTANCES:
        for top in range(0, tokens, SIDE):
            rows = top + lane
            tile = products(features, rows, rows, tokens, size, SIDE, SIDE, DEPTH, PRECISION)
            square = tl.sum(tl.where(lane[:, None] == lane[None, :], tile, 0.0), 1)
            tl.store(squares + rows, square, mask=rows < tokens)
        tl.debug_barrier()
    for top in range(0, tokens, SIDE):
        rows = top + lane
        for left in range(top, tokens, SIDE):
            columns = left + lane
            tile = products(features, rows, columns, tokens, size, SIDE, SIDE, DEPTH, PRECISION)
            if top == left:
                tile = (tile + tl.trans(tile)) * 0.5
            inside = (rows < tokens)[:, None] & (columns < tokens)[None, :]
            if DISTANCES:
                ours = tl.load(squares + rows, mask=rows < tokens, other=0.0)
                theirs = tl.load(squares + columns, mask=columns < tokens, other=0.0)
                tile = tl.maximum(ours[:, None] + theirs[None, :] - 2 * tile, 0.0)
                tile = tl.where(rows[:, None] == columns[None, :], 0.0, tile)
            tl.store(matrix + rows[:, None] * tokens + columns[None, :], tile, mask=inside)
            if top != left:
                mirrored = matrix + columns[:, None] * tokens + rows[None, :]
                outside = (columns < tokens)[:, None] & (rows < tokens)[None, :]
                tl.store(mirrored, tl.trans(tile), mask=outside)
    tl.debug_barrier()


@triton.jit
def write_scaled(weights, scaled, tokens, HAS_WEIGHTS: tl.constexpr, COLUMNS: tl.constexpr):
    """Weights over their largest, as `tokenpool.kernels.scaled`; 1 without any."""
    lane = tl.arange(0, COLUMNS)
    if HAS_WEIGHTS:
        largest = 0.0
        for first in range(0, tokens, COLUMNS):
            index = first + lane
            values = tl.load(weights + index, mask=index < tokens, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.max(values, 0))
        divisor = tl.where(largest > 0, largest, 1.0)
        for first in range(0, tokens, COLUMNS):
            index = first + lane
            values = tl.load(weights + index, mask=index < tokens, other=0.0).to(tl.float32)
            whole = tl.div_rn(values, tl.zeros_like(values) + divisor)
            tl.store(scaled + index, whole, mask=index < tokens)
    else:
        for first in range(0, tokens, COLUMNS):
            index = first + lane
            ones = tl.full((COLUMNS,), 1.0, tl.float32)
            tl.store(scaled + index, ones, mask=index < tokens)


@triton.jit
def own_sums(matrix, labels, weights, sums, tokens, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """For each token i the sum of w_j·matrix_ij over the tokens j of its own cluster."""
    for top in range(0, tokens, ROWS):
        rows = top + tl.arange(0, ROWS)
        ours = tl.load(labels + rows, mask=rows < tokens, other=-1)
        total = tl.zeros((ROWS,), tl.float32)
        for left in range(0, tokens, COLUMNS):
            columns = left + tl.arange(0, COLUMNS)
            inside = (rows < tokens)[:, None] & (columns < tokens)[None, :]
            theirs = tl.load(labels + columns, mask=columns < tokens, other=-2)
            weight = tl.load(weights + columns, mask=columns < tokens, other=0.0)
            at = matrix + rows[:, None] * tokens + columns[None, :]
            value = tl.load(at, mask=inside, other=0.0) * weight[None, :]
            total += tl.sum(tl.where(ours[:, None] == theirs[None, :], value, 0.0), 1)
        tl.store(sums + rows, total, mask=rows < tokens)


@triton.jit
def write_means(
    x, labels, weights, start, means, shares, order, tokens, kept, width,
    STANDS_IN: tl.constexpr, NOTHING: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    GROUP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The weighted mean `means [k, width]` of each cluster, and each token's share in its own.

    The members of a cluster are added in the order of their indices: no atomic addition, the same
    result at every run. Where they weigh no more than NOTHING, the token `start` stands in, if
    STANDS_IN.

    Args:
        labels: `[N]`, −1 for none.
        weights: `[N]`, fp32.
        shares: `[N]`, written.
        order: `[N]` to work in: the tokens sorted by cluster.
    """
    for top in range(0, tokens, ROWS):
        rows = top + tl.arange(0, ROWS)
        ours = tl.load(labels + rows, mask=rows < tokens, other=-1).to(tl.int32)
        place = tl.zeros((ROWS,), tl.int32)
        mass = tl.zeros((ROWS,), tl.float32)
        for left in range(0, tokens, COLUMNS):
            columns = left + tl.arange(0, COLUMNS)
            theirs = tl.load(labels + columns, mask=columns < tokens, other=kept).to(tl.int32)
            weight = tl.load(weights + columns, mask=columns < tokens, other=0.0)
            same = theirs[None, :] == ours[:, None]
            earlier = columns[None, :] < rows[:, None]
            ahead = (theirs[None, :] < ours[:, None]) | (same & earlier)
            place += tl.sum(ahead.to(tl.int32), 1)
            mass += tl.sum(tl.where(same, weight[None, :], 0.0), 1)
        weight = tl.load(weights + rows, mask=rows < tokens, other=0.0)
        counts = (ours >= 0) & (mass > NOTHING)
        share = tl.where(counts, tl.div_rn(weight, tl.where(counts, mass, 1.0)), 0.0)
        tl.store(shares + rows, share, mask=rows < tokens)
        tl.store(order + place, rows, mask=rows < tokens)
    tl.debug_barrier()
    for group in range(0, kept, GROUP):
        clusters = group + tl.arange(0, GROUP)
        begin = tl.zeros((GROUP,), tl.int32)
        count = tl.zeros((GROUP,), tl.int32)
        for left in range(0, tokens, COLUMNS):
            columns = left + tl.arange(0, COLUMNS)
            theirs = tl.load(labels + columns, mask=columns < tokens, other=kept).to(tl.int32)
            begin += tl.sum((theirs[None, :] < clusters[:, None]).to(tl.int32), 1)
            count += tl.sum((theirs[None, :] == clusters[:, None]).to(tl.int32), 1)
        count = tl.where(clusters < kept, count, 0)
        most = tl.max(count, 0)
        for left in range(0, width, WIDE):
            lanes = left + tl.arange(0, WIDE)
            across = (lanes < width)[None, :]
            total = tl.zeros((GROUP, WIDE), tl.float32)
            part = tl.zeros((GROUP,), tl.float32)
            for turn in range(0, most):
                there = turn < count
                member = tl.load(order + begin + turn, mask=there, other=0)
                share = tl.load(shares + member, mask=there, other=0.0)
                at = x + member[:, None] * width + lanes[None, :]
                value = tl.load(at, mask=there[:, None] & across, other=0.0).to(tl.float32)
                total += share[:, None] * value
                part += share
            if STANDS_IN:
                lone = (part == 0.0) & (clusters < kept)
                token = tl.load(start + clusters, mask=lone, other=0)
                at = x + token[:, None] * width + lanes[None, :]
                value = tl.load(at, mask=lone[:, None] & across, other=0.0).to(tl.float32)
                total = tl.where(lone[:, None], value, total)
            at = means + clusters[:, None] * width + lanes[None, :]
            inside = (clusters < kept)[:, None] & across
            tl.store(at, total.to(means.dtype.element_ty), mask=inside)
