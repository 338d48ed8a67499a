"""`pitome` against a loop over tokens that was written from the paper's formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tokenpool as tp
from tokenpool.methods import method
from tokenpool.methods.base import Pooled, TokenSet
from tokenpool.methods.pitome import PiToMe


def reduce(tokens: Tensor, keys: Tensor, sizes: Tensor | None, k: int, depth: float) -> Pooled:
    given_ = TokenSet(tokens, keys, None, sizes, None, depth)
    return method("pitome").reduce(given_, k, tp.PoolOptions())


def by_hand(keys: Tensor, k: int, layer: int, layers: int) -> dict[int, int]:
    """One image: which token each merged one goes to.

    E_i is the mean of f(cos(i, j)) over the other tokens j, with f(x) = x − m for x ≥ m and
    exp(x − m) − 1 below, m = 0.9 − 0.9·layer/layers.
    """
    count, margin = len(keys), 0.9 - 0.9 * layer / layers
    unit = [key / key.norm() for key in keys]

    def f(x: float) -> float:
        return x - margin if x >= margin else math.exp(x - margin) - 1

    cosine = [[float(a @ b) for b in unit] for a in unit]
    energy = [
        sum(f(cosine[i][j]) for j in range(count) if j != i) / (count - 1) for i in range(count)
    ]
    ranked = sorted(range(count), key=lambda i: -energy[i])
    if 2 * layer >= layers:  # the others are protected
        ranked = ranked[: 2 * (count - k)]
    ours, theirs = ranked[::2], ranked[1::2]
    partner = {i: max(theirs, key=lambda j: cosine[i][j]) for i in ours}
    closest = sorted(ours, key=lambda i: -cosine[i][partner[i]])[: count - k]
    return {i: partner[i] for i in closest}


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 16), st.data())
def test_equals_a_loop_over_tokens(count: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(count - count // 2, count - 1))
    layer = data.draw(st.integers(0, 11))
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    tokens = torch.randn(2, count, 5, generator=random, dtype=torch.float64)
    # All on one side, so that some cosines are above the margin.
    keys = torch.randn(2, count, 4, generator=random, dtype=torch.float64) + 1
    sizes = torch.randint(1, 5, (2, count), generator=random).double()
    pooled = reduce(tokens, keys, sizes, k, layer / 12)
    for b in range(2):
        merged = by_hand(keys[b], k, layer, 12)
        left = [i for i in range(count) if i not in merged]
        # In their old order, each the mean of all it stands for.
        assert pooled.assignment[b].tolist() == [left.index(merged.get(i, i)) for i in range(count)]
        for place, token in enumerate(left):
            members = [token, *(i for i, to in merged.items() if to == token)]
            weights = sizes[b, members] / sizes[b, members].sum()
            torch.testing.assert_close(pooled.tokens[b, place], weights @ tokens[b, members])


def test_what_nothing_is_like_is_protected() -> None:
    """Twenty tokens in four bunches, and four alone: these stay as they are."""
    random = torch.Generator().manual_seed(0)
    bunches = torch.eye(8)[:4].repeat(5, 1) + 0.01 * torch.randn(20, 8, generator=random)
    keys = torch.cat((bunches, torch.eye(8)[4:]))[None]
    pooled = reduce(keys, keys, None, 14, 0.5)  # the second half of the layers
    for token in range(20, 24):
        assert (pooled.assignment[0] == pooled.assignment[0, token]).sum() == 1
        assert torch.equal(pooled.tokens[0, pooled.assignment[0, token]], keys[0, token])


def test_each_layer_has_its_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    before = PiToMe.reduce

    def spy(self: PiToMe, given_: TokenSet, k: int, options: tp.PoolOptions) -> Pooled:
        seen.append(given_.depth)
        return before(self, given_, k, options)

    monkeypatch.setattr(PiToMe, "reduce", spy)
    model = tp.build_vit(16, 4, 24, 4, 3, 5).eval()
    tp.pool(model, (14, 12, 12, 9), "pitome")(torch.randn(1, 3, 16, 16))
    assert seen == [0, 0.25, 0.75]


def test_at_most_half_is_merged_in_a_layer() -> None:
    model = tp.build_vit(16, 4, 24, 4, 3, 5).eval()
    tp.pool(model, (5, 5, 2, 1), "pitome")
    assert tp.pooling_of(model).realised == (8, 5, 3, 2)
    assert torch.isfinite(model(torch.randn(2, 3, 16, 16))).all()


def test_where_and_how_it_pools() -> None:
    """As published: by the keys, between attention and MLP, attention in proportion to sizes."""
    pitome, options = method("pitome"), tp.PoolOptions()
    assert pitome.features(options) == "keys"
    assert pitome.position(options) == "attention"
    assert pitome.proportional
    assert pitome.needs_sizes
    assert not pitome.needs_scores(options)
