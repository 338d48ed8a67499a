"""`leader` in one launch: similarities, novelty, ranking, joining and means of one image."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from tokenpool.gpu.tiles import goes_before, products, write_means


# Compiled once for all counts, not once a layer.
@triton.jit(do_not_specialize=["tokens", "kept"])
def leader_kernel(
    x, features, scores, weights, means, labels, shares, floats, whole, tokens, kept, width, size,
    HAS_SCORES: tl.constexpr, HAS_WEIGHTS: tl.constexpr, LEAST: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """See `tokenpool.methods.leader`. Ranks are counted, not sorted: N² comparisons.

    Similarities are computed twice, which costs a tensor core less than to store them.

    Args:
        floats: `[B, 4, N]` to work in: inverse lengths, scores, novelty, weights.
        whole: `[B, 2, N]` to work in: ranks, order.
        LEAST: what a score or weight is at least.
    """
    image = tl.program_id(0).to(tl.int64)
    x += image * tokens * width
    features += image * tokens * size
    means += image * kept * width
    labels += image * tokens
    shares += image * tokens
    inverse = floats + image * 4 * tokens
    significance = inverse + tokens
    novelty = significance + tokens
    mass = novelty + tokens
    ranks = whole + image * 2 * tokens
    order = ranks + tokens

    for top in range(0, tokens, ROWS):
        rows = top + tl.arange(0, ROWS)
        square = tl.zeros((ROWS,), tl.float32)
        for first in range(0, size, DEPTH):
            depth = first + tl.arange(0, DEPTH)
            inside = (rows < tokens)[:, None] & (depth < size)[None, :]
            at = features + rows[:, None] * size + depth[None, :]
            value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            square += tl.sum(value * value, 1)
        length = tl.maximum(tl.sqrt_rn(square), 1e-12)
        tl.store(inverse + rows, tl.div_rn(1.0 + tl.zeros_like(length), length), mask=rows < tokens)
        score = tl.zeros((ROWS,), tl.float32)
        if HAS_SCORES:
            at = scores + image * tokens + rows
            score = tl.load(at, mask=rows < tokens, other=0.0).to(tl.float32)
            # What is not a number has no place in an order.
            score = tl.where(score == score, score, 0.0)
        tl.store(significance + rows, score, mask=rows < tokens)
        weight = tl.full((ROWS,), 1.0, tl.float32)
        if HAS_WEIGHTS:
            at = weights + image * tokens + rows
            weight = tl.maximum(tl.load(at, mask=rows < tokens, other=1.0).to(tl.float32), LEAST)
        tl.store(mass + rows, weight, mask=rows < tokens)
    tl.debug_barrier()

    for top in range(0, tokens, ROWS):
        rows = top + tl.arange(0, ROWS)
        ours = tl.load(significance + rows, mask=rows < tokens, other=0.0)
        scale = tl.load(inverse + rows, mask=rows < tokens, other=0.0)
        nearest = tl.full((ROWS,), float("-inf"), tl.float32)
        for left in range(0, tokens, COLUMNS):
            columns = left + tl.arange(0, COLUMNS)
            theirs = tl.load(significance + columns, mask=columns < tokens, other=0.0)
            across = tl.load(inverse + columns, mask=columns < tokens, other=0.0)
            cosine = products(
                features, rows, columns, tokens, size, ROWS, COLUMNS, DEPTH, PRECISION
            )
            cosine = cosine * scale[:, None] * across[None, :]
            before = goes_before(theirs[None, :], columns[None, :], ours[:, None], rows[:, None])
            before &= (columns < tokens)[None, :]
            nearest = tl.maximum(nearest, tl.max(tl.where(before, cosine, float("-inf")), 1))
        new = tl.maximum(1.0 - nearest, 0.0)
        if HAS_SCORES:
            new *= tl.sqrt_rn(tl.maximum(ours, LEAST))
        tl.store(novelty + rows, tl.where(new == new, new, float("inf")), mask=rows < tokens)
    tl.debug_barrier()

    for top in range(0, tokens, ROWS):
        rows = top + tl.arange(0, ROWS)
        ours = tl.load(significance + rows, mask=rows < tokens, other=0.0)
        new = tl.load(novelty + rows, mask=rows < tokens, other=0.0)
        rank = tl.zeros((ROWS,), tl.int32)
        for left in range(0, tokens, COLUMNS):
            columns = left + tl.arange(0, COLUMNS)
            theirs = tl.load(significance + columns, mask=columns < tokens, other=0.0)
            # Novelty is never negative: those beyond the last token are ahead of none.
            newer = tl.load(novelty + columns, mask=columns < tokens, other=-1.0)
            before = goes_before(theirs[None, :], columns[None, :], ours[:, None], rows[:, None])
            tied = (newer[None, :] == new[:, None]) & before
            rank += tl.sum(((newer[None, :] > new[:, None]) | tied).to(tl.int32), 1)
        tl.store(ranks + rows, rank, mask=rows < tokens)
    tl.debug_barrier()

    for top in range(0, tokens, ROWS):
        rows = top + tl.arange(0, ROWS)
        rank = tl.load(ranks + rows, mask=rows < tokens, other=0)
        best = tl.full((ROWS,), float("-inf"), tl.float32)
        target = tl.zeros((ROWS,), tl.int32) + tokens
        for left in range(0, tokens, COLUMNS):
            columns = left + tl.arange(0, COLUMNS)
            leader = tl.load(ranks + columns, mask=columns < tokens, other=tokens)
            across = tl.load(inverse + columns, mask=columns < tokens, other=0.0)
            cosine = products(
                features, rows, columns, tokens, size, ROWS, COLUMNS, DEPTH, PRECISION
            )
            # A token's own length scales all alike: left out of the comparison, as in its cosines
            # rounding could part what is equal.
            cosine = tl.where((leader < kept)[None, :], cosine * across[None, :], float("-inf"))
            most = tl.max(cosine, 1)
            lowest = tl.where(cosine == most[:, None], leader[None, :], tokens)
            first = tl.min(lowest, 1)
            equal = tl.where(most == best, tl.minimum(target, first), target)
            target = tl.where(most > best, first, equal)
            best = tl.maximum(best, most)
        label = tl.where(rank < kept, rank, tl.minimum(target, kept - 1))
        tl.store(labels + rows, label.to(tl.int64), mask=rows < tokens)
    tl.debug_barrier()

    write_means(
        x, labels, mass, labels, means, shares, order, tokens, kept, width, False, 0.0, ROWS,
        COLUMNS, GROUP, WIDE,
    )  # fmt: skip
