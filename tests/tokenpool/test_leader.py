"""`leader` against a loop over tokens that was written from its description."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tokenpool as tp
from tokenpool.attention import _first_attention, _head_mean
from tokenpool.methods import method
from tokenpool.methods.base import TokenSet
from tokenpool.options import PoolOptions


def by_hand(
    tokens: Tensor, features: Tensor, scores: Tensor | None, sizes: Tensor, k: int
) -> tuple[list[int], Tensor]:
    """One image, token by token: the assignment and the means."""
    count = len(tokens)
    unit = features / features.norm(dim=1, keepdim=True)
    cosine = unit @ unit.T
    novelty = []
    for i in range(count):
        before = [
            j
            for j in range(count)
            if (j < i if scores is None or scores[j] == scores[i] else scores[j] > scores[i])
        ]
        weight = 1.0 if scores is None else float(scores[i]) ** 0.5
        likeness = max((float(cosine[i, j]) for j in before), default=-float("inf"))
        novelty.append(max(0.0, 1 - likeness) * weight)
    kept = sorted(range(count), key=lambda i: -novelty[i])[:k]
    assignment = [
        kept.index(i) if i in kept else max(range(k), key=lambda c: float(cosine[i, kept[c]]))
        for i in range(count)
    ]
    means = torch.stack(
        [
            sum(sizes[i] * tokens[i] for i in range(count) if assignment[i] == c)
            / sum(sizes[i] for i in range(count) if assignment[i] == c)
            for c in range(k)
        ]
    )
    return assignment, means


def reduce(tokens: Tensor, features: Tensor, scores: Tensor | None, sizes: Tensor, k: int):
    return method("leader").reduce(
        TokenSet(tokens, features, scores, sizes, None), k, PoolOptions()
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 14), st.data(), st.booleans())
def test_equals_a_loop_over_tokens(count: int, data: st.DataObject, scored: bool) -> None:
    k = data.draw(st.integers(1, count))
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    tokens = torch.randn(2, count, 5, generator=random, dtype=torch.float64)
    features = torch.randn(2, count, 4, generator=random, dtype=torch.float64)
    sizes = torch.randint(1, 5, (2, count), generator=random).double()
    scores = torch.rand(2, count, generator=random, dtype=torch.float64) if scored else None
    pooled = reduce(tokens, features, scores, sizes, k)
    for b in range(2):
        labels, means = by_hand(
            tokens[b], features[b], None if scores is None else scores[b], sizes[b], k
        )
        assert pooled.assignment[b].tolist() == labels
        torch.testing.assert_close(pooled.tokens[b], means)


def test_the_order_of_tokens_does_not_matter() -> None:
    random = torch.Generator().manual_seed(1)
    tokens = torch.randn(1, 30, 8, generator=random)
    scores, sizes = torch.rand(1, 30, generator=random), torch.ones(1, 30)
    order = torch.randperm(30, generator=random)
    straight = reduce(tokens, tokens, scores, sizes, 12)
    shuffled = reduce(tokens[:, order], tokens[:, order], scores[:, order], sizes, 12)
    torch.testing.assert_close(straight.tokens, shuffled.tokens)
    assert torch.equal(straight.assignment[0][order], shuffled.assignment[0])


def test_equal_tokens_and_nothing_else_are_merged_where_there_is_room() -> None:
    distinct = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(2))
    tokens = distinct.repeat_interleave(torch.tensor([1, 3, 2, 1, 4, 1]), dim=1)
    pooled = reduce(tokens, tokens, torch.ones(1, 12), torch.ones(1, 12), 6)
    ours = pooled.tokens[0][pooled.assignment[0]]
    torch.testing.assert_close(ours, tokens[0])


@pytest.mark.parametrize("head", [{}, {"class_token": False, "global_pool": "avg"}])
def test_with_and_without_a_class_token(head: dict) -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=3, num_classes=5, **head
    ).eval()
    x = torch.randn(2, 3, 64, 64)
    dense = model(x)
    tp.pool(model, (16, 16, 16), "leader")
    assert torch.equal(model(x), dense)
    tp.pool(model, (12, 9, 6), "leader")
    assert torch.isfinite(model(x)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_attention_tells_equals_its_definition(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(4)
    qkv = torch.randn(2, 9, 3, 3, 8, generator=random).to(dtype)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    bias = torch.rand(2, 1, 1, 9, generator=random).to(dtype)
    close = {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {}
    expected = torch.stack((q.double().mean(1), k.double().mean(1)), 2)
    torch.testing.assert_close(_head_mean(qkv[:, :, :2]).double(), expected, **close)
    logits = (q[:, :, :1].double() * 0.3) @ k.double().transpose(-2, -1)
    for added in (None, bias):
        probabilities = (logits if added is None else logits + added).softmax(-1)
        found = _first_attention(q, k, 0.3, added).double()
        torch.testing.assert_close(found, probabilities.sum((1, 2)), **close)


def test_sizes_are_those_of_the_assignment_and_the_prefix_stays() -> None:
    random = torch.Generator().manual_seed(5)
    whole = torch.randn(3, 14, 6, generator=random)
    tokens, features = whole[:, 2:], torch.randn(3, 12, 4, generator=random)
    scores, sizes = torch.rand(3, 12, generator=random), torch.ones(3, 12)
    given_ = TokenSet(tokens, features, scores, sizes, None, whole=whole)
    pooled = method("leader").reduce(given_, 5, PoolOptions())
    alone = reduce(tokens, features, scores, sizes, 5)
    assert pooled.whole is not None and pooled.sizes is not None
    assert torch.equal(pooled.whole[:, :2], whole[:, :2])
    torch.testing.assert_close(pooled.whole[:, 2:], alone.tokens)
    counted = torch.nn.functional.one_hot(pooled.assignment, 5).sum(1)
    assert torch.equal(pooled.sizes, counted.float())
