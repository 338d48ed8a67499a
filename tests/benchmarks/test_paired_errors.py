"""Two methods on the same tokens."""

import pytest
import torch

import tokenpool as tp
from benchmarks.pooling.paired_errors import paired_errors
from tokenpool.clustering import matched_indices, nearest, work_features
from tokenpool.token_trace import record


def small():
    torch.manual_seed(0)
    return tp.build_vit(32, 4, 24, 3, 3, 5).eval()


def test_a_rival_that_does_the_same_loses_the_same():
    """Given the very tokens, keys and significance, a method agrees with itself, to the bit."""
    model, x = small(), torch.randn(4, 3, 32, 32)
    for method, options in (
        ("wkmedoids", {}),
        ("kmeans", {"features": "keys"}),
        ("tome", {"proportional_attention": True}),
    ):
        tp.pool(model, None)
        tp.pool(model, (40, 40, 25), method, **options)
        rows = paired_errors(model, [x[:1], x[1:]], method, **options)
        assert [(row.layer, row.tokens, row.k) for row in rows] == [(1, 64, 40), (3, 40, 25)]
        if method == "tome":  # the rival is not told the sizes
            assert rows[0].own == rows[0].rival > 0
        else:
            assert all(row.own == row.rival > 0 for row in rows)
    assert not any(b._forward_pre_hooks or b.observer for b in model.blocks)


def test_rivals_pool_the_tokens_of_the_model_and_not_their_own():
    model, x = small(), torch.randn(4, 3, 32, 32)
    tp.pool(model, (32, 16, 8), "powerbert")
    with record(model, keep_tokens=True) as found:
        model(x)
    rows = paired_errors(model, [x], "kmeans", iterations=1, start="matching")
    for row, layer in zip(rows, found.layers, strict=True):
        tokens = layer.tokens
        features = work_features(tokens)
        start = matched_indices(features, layer.kept)
        _, members = nearest(
            features, torch.stack([f[s] for f, s in zip(features, start, strict=True)])
        )
        error = []
        for one, member in zip(tokens, members, strict=True):
            means = torch.stack([one[member == c].mean(0) for c in range(layer.kept)])
            lost = torch.cdist(one, means).amin(1).square().sum()
            error.append(lost / (one - one.mean(0)).square().sum())
        assert row.rival == pytest.approx(sum(error).item() / 4, rel=1e-4)


def test_rivals_are_refused_where_they_cannot_take_part():
    model, x = small(), torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match="not pooled"):
        paired_errors(model, [x], "kmeans")
    tp.pool(model, (20, 10, 5), "random")
    with pytest.raises(ValueError, match="tome cannot make 20 tokens of 64"):
        paired_errors(model, [x], "tome")
    with pytest.raises(ValueError, match="no images"):
        paired_errors(model, [], "kmeans")
