"""The attention each token receives, from queries and keys: nothing of size N² is stored."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attention_logits(
    query, key, rows, columns, queries, tokens, query_stride, key_stride, bias, scale,
    head, HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Logits `[rows, columns]` of one head; −∞ beyond the last token."""
    lane = tl.arange(0, WIDTH)
    left = tl.load(
        query + rows[:, None] * query_stride + lane[None, :],
        mask=(rows < queries)[:, None] & (lane < head)[None, :],
        other=0.0,
    )
    right = tl.load(
        key + columns[None, :] * key_stride + lane[:, None],
        mask=(columns < tokens)[None, :] & (lane < head)[:, None],
        other=0.0,
    )
    logits = tl.dot(left, right, input_precision=PRECISION) * scale
    if HAS_BIAS:
        logits += tl.load(bias + columns, mask=columns < tokens, other=0.0).to(tl.float32)[None, :]
    return tl.where((columns < tokens)[None, :], logits, float("-inf"))


# Compiled once for all counts, not once a layer.
@triton.jit(do_not_specialize=["tokens", "queries"])
def received_kernel(
    query, key, bias, sizes, received, normalisers, queries, tokens, heads, head, scale,
    query_image, query_head, query_stride, key_image, key_head, key_stride,
    HAS_BIAS: tl.constexpr, HAS_SIZES: tl.constexpr, ONE_TILE: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What one head's queries give to each token: `received [B, H, N]`, one program a head.

    Where all keys are one tile, each row of the softmax is had at once. Else the log-sum-exp of
    each query comes first (`normalisers [B, H, n]`), then the probabilities again, key by key.

    Args:
        bias: added to the logits of each key `[B, N]`.
        sizes: how many queries each counts as `[B, n]`.
    """
    image = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1)
    query += image * query_image + number * query_head
    key += image * key_image + number * key_head
    bias += image * tokens
    sizes += image * queries
    received += (image * heads + number) * tokens
    normalisers += (image * heads + number) * queries
    if not ONE_TILE:
        for top in range(0, queries, ROWS):
            rows = top + tl.arange(0, ROWS)
            most = tl.full((ROWS,), float("-inf"), tl.float32)
            total = tl.zeros((ROWS,), tl.float32)
            for left in range(0, tokens, COLUMNS):
                columns = left + tl.arange(0, COLUMNS)
                logits = attention_logits(
                    query, key, rows, columns, queries, tokens, query_stride, key_stride, bias,
                    scale, head, HAS_BIAS, WIDTH, PRECISION,
                )  # fmt: skip
                now = tl.maximum(most, tl.max(logits, 1))
                total = total * tl.exp(most - now) + tl.sum(tl.exp(logits - now[:, None]), 1)
                most = now
            tl.store(normalisers + rows, most + tl.log(total), mask=rows < queries)
        tl.debug_barrier()
    for left in range(0, tokens, COLUMNS):
        columns = left + tl.arange(0, COLUMNS)
        summed = tl.zeros((COLUMNS,), tl.float32)
        for top in range(0, queries, ROWS):
            rows = top + tl.arange(0, ROWS)
            logits = attention_logits(
                query, key, rows, columns, queries, tokens, query_stride, key_stride, bias,
                scale, head, HAS_BIAS, WIDTH, PRECISION,
            )  # fmt: skip
            count = (rows < queries).to(tl.float32)
            if HAS_SIZES:
                count = tl.load(sizes + rows, mask=rows < queries, other=0.0).to(tl.float32)
            if ONE_TILE:
                likely = tl.exp(logits - tl.max(logits, 1)[:, None])
                count = count / tl.sum(likely, 1)
            else:
                normaliser = tl.load(normalisers + rows, mask=rows < queries, other=0.0)
                likely = tl.exp(logits - normaliser[:, None])
            summed += tl.sum(likely * count[:, None], 0)
        tl.store(received + columns, summed, mask=columns < tokens)
