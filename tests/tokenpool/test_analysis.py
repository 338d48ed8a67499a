"""The measurements on inputs whose answer is known by hand."""

import math

import pytest
import torch

import tokenpool as tp
from tokenpool.study import analysis, plots


def wave(rows, columns, frequency):
    """A cosine along the columns, `[1, rows · columns, 1]`."""
    x = torch.cos(2 * math.pi * frequency * torch.arange(columns).float())
    return x.expand(rows, -1).reshape(1, -1, 1)


def test_the_high_frequency_share_of_pure_waves():
    assert analysis.high_frequency_share(wave(8, 8, 1 / 8), (8, 8)).item() == pytest.approx(
        0, abs=1e-6
    )
    assert analysis.high_frequency_share(wave(8, 8, 3 / 8), (8, 8)).item() == pytest.approx(
        1, abs=1e-6
    )
    mixed = wave(8, 8, 1 / 8) + 2 * wave(8, 8, 3 / 8)
    # Energies are 1 and 4, whatever constant is added.
    assert analysis.high_frequency_share(mixed + 7, (8, 8)).item() == pytest.approx(0.8, abs=1e-5)
    assert analysis.high_frequency_share(torch.ones(1, 64, 3), (8, 8)).item() == 0
    turned = mixed.view(1, 8, 8, 1).transpose(1, 2).reshape(1, 64, 1)
    assert analysis.high_frequency_share(turned, (8, 8)).item() == pytest.approx(0.8, abs=1e-5)


def test_the_mean_cosine_against_a_loop():
    x = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    pairs = [
        torch.cosine_similarity(x[:, i], x[:, j]) for i in range(7) for j in range(7) if i != j
    ]
    torch.testing.assert_close(analysis.mean_cosine(x), torch.stack(pairs).mean(0))
    assert analysis.mean_cosine(x[:, :1]).tolist() == pytest.approx([0, 0], abs=1e-5)


def small():
    torch.manual_seed(0)
    return tp.build_vit(32, 4, 24, 3, 3, 5).eval()


def test_attention_without_queries_is_the_lowest_pass():
    """Queries of zero make attention uniform: everything that varies is gone after it."""
    model = small()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[:24] = 0
    rows = analysis.low_pass(model, [torch.randn(4, 3, 32, 32)])
    for row in rows:
        assert row.cosine_after == pytest.approx(1.0, abs=1e-4)
        assert row.cosine_before < 0.9
        assert row.high_before > 0.1


def test_measuring_leaves_a_pooled_model_as_it_was():
    model = tp.pool(small(), (50, 40, 30), "tome", position="attention").train()
    plans = [block.plan for block in model.blocks]
    x = torch.randn(2, 3, 32, 32)
    analysis.low_pass(model, [x])
    analysis.error_by_k(model, [x], [32], ["kmeans"])
    assert [block.plan for block in model.blocks] == plans and model.training
    assert not any(b._forward_hooks or b.attn._forward_hooks for b in model.blocks)


def test_batches_are_averaged_by_image():
    model, x = small(), torch.randn(5, 3, 32, 32)
    whole = analysis.low_pass(model, [x])
    parts = analysis.low_pass(model, [x[:2], x[2:]])
    for ours, theirs in zip(whole, parts, strict=True):
        assert ours.high_after == pytest.approx(theirs.high_after, rel=1e-4)
        assert ours.cosine_tokens == pytest.approx(theirs.cosine_tokens, rel=1e-3, abs=1e-5)
    with pytest.raises(ValueError, match="no images"):
        analysis.low_pass(model, [])


def test_the_error_falls_with_k_and_clustering_loses_least():
    model, x = small(), torch.randn(4, 3, 32, 32)
    points = analysis.error_by_k(model, [x[:2], x[2:]], [8, 16, 32, 48, 64], tp.METHODS)
    found = {(p.layer, p.method, p.k): p.error for p in points}
    for layer in (1, 2, 3):
        for method in ("kmeans", "kmedoids", "wkmedoids"):
            course = [found[layer, method, k] for k in (8, 16, 32, 48)]
            assert course == sorted(course, reverse=True)
            assert 0 < course[0] < 1.5
        for k in (16, 32, 48):
            best_pruning = min(found[layer, m, k] for m in ("powerbert", "importance", "random"))
            assert found[layer, "kmeans", k] < best_pruning
            assert found[layer, "kmedoids", k] < best_pruning
    # ToMe halves at most; the grid makes squares.
    assert {p.k for p in points if p.method == "tome"} == {32, 48}
    assert {p.k for p in points if p.method == "grid"} == {6, 16, 30, 42}


def test_plots_are_written(tmp_path):
    model, x = small(), torch.rand(2, 3, 32, 32)
    tp.pool(model, (50, 40, 30))
    _, found = tp.trace(model, x)
    plots.plot_costs(
        {"dense": tp.macs(model, tp.Schedule.dense(3, 64)), "pooled": tp.macs(model)},
        tmp_path / "a.png",
    )
    plots.plot_low_pass(analysis.low_pass(model, [x]), tmp_path / "b.png")
    plots.plot_errors(
        analysis.error_by_k(model, [x], [16, 32], ["kmeans", "grid"]), tmp_path / "c.png"
    )
    maps = {f"layer {i}": found.assignment(after=i - 1) for i in (1, 3)}
    plots.plot_token_maps(x, maps, (8, 8), tmp_path / "d.png")
    for name in "abcd":
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
