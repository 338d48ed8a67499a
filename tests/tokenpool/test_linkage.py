"""Agglomerative clustering in rounds against SciPy's, one merge at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import cut_tree, linkage
from torch import Tensor

from tokenpool.methods import linkage as ours
from tokenpool.methods.linkage import agglomerative_labels

LINKAGES = ("average", "complete", "single", "ward")


def numbered(labels: list[int]) -> list[int]:
    """The same clusters, numbered by their first token."""
    seen: dict[int, int] = {}
    return [seen.setdefault(label, len(seen)) for label in labels]


def by_scipy(features: Tensor, k: int, kind: str) -> list[int]:
    """One image: the dendrogram of SciPy, cut into k."""
    # Ward's takes distances; the others the squares, as ours do.
    metric = "euclidean" if kind == "ward" else "sqeuclidean"
    return numbered(cut_tree(linkage(features.numpy(), kind, metric=metric), k).ravel().tolist())


def one_by_one(features: Tensor, sizes: Tensor, k: int, kind: str) -> list[int]:
    """One image of weighted tokens, by definition: every distance from all members, each time."""
    clusters = [[i] for i in range(len(features))]
    square = (features[:, None] - features[None]).square().sum(-1)

    def apart(a: list[int], b: list[int]) -> float:
        pairs = square[a][:, b]
        if kind == "complete":
            return float(pairs.max())
        if kind == "single":
            return float(pairs.min())
        wa, wb = sizes[a], sizes[b]
        if kind == "average":
            return float((pairs * wa[:, None] * wb[None]).sum() / (wa.sum() * wb.sum()))
        mean_a, mean_b = (wa @ features[a]) / wa.sum(), (wb @ features[b]) / wb.sum()
        weight = wa.sum() * wb.sum() / (wa.sum() + wb.sum())
        return float(weight * (mean_a - mean_b).square().sum())

    while len(clusters) > k:
        low, high = min(
            ((i, j) for i in range(len(clusters)) for j in range(i + 1, len(clusters))),
            key=lambda pair: apart(clusters[pair[0]], clusters[pair[1]]),
        )
        clusters[low] += clusters.pop(high)
    labels = [0] * len(features)
    for number, members in enumerate(clusters):
        for token in members:
            labels[token] = number
    return numbered(labels)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.data(), st.sampled_from(LINKAGES))
def test_equals_scipy(tokens: int, data: st.DataObject, kind: str) -> None:
    k = data.draw(st.integers(1, tokens))
    features = drawn(data.draw(st.integers(0, 10**6)), 3, tokens, 4)
    labels = agglomerative_labels(features, k, kind)
    assert labels.tolist() == [by_scipy(image, k, kind) for image in features]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 10), st.data(), st.sampled_from(LINKAGES))
def test_weighted_tokens_equal_a_loop_over_pairs(
    tokens: int, data: st.DataObject, kind: str
) -> None:
    k = data.draw(st.integers(1, tokens))
    seed = data.draw(st.integers(0, 10**6))
    features = drawn(seed, 2, tokens, 3)
    sizes = 1 + drawn(seed + 1, 2, tokens).abs() * 4
    labels = agglomerative_labels(features, k, kind, sizes)
    assert labels.tolist() == [
        one_by_one(*image, k, kind) for image in zip(features, sizes, strict=True)
    ]


@pytest.mark.parametrize("kind", LINKAGES)
def test_a_token_of_size_three_is_three_equal_tokens(kind: str) -> None:
    """SciPy has no weights, but tokens can be repeated."""
    features, sizes = drawn(5, 20, 4), torch.arange(20) % 3 + 1
    repeated = features.repeat_interleave(sizes, dim=0)
    first = sizes.cumsum(0) - sizes
    want = by_scipy(repeated, 8, kind)
    got = agglomerative_labels(features[None], 8, kind, sizes[None].double())
    assert got[0].tolist() == numbered([want[i] for i in first.tolist()])


@pytest.mark.parametrize("kind", LINKAGES)
def test_equals_scipy_at_the_size_of_a_vit(kind: str) -> None:
    """In fp32, as it is used: 196 tokens of 64, down to few in one step."""
    features = drawn(7, 2, 196, 64).float()
    for k in (182, 98, 20):
        labels = agglomerative_labels(features, k, kind)
        assert labels.tolist() == [by_scipy(image.double(), k, kind) for image in features]


@pytest.mark.parametrize("kind", LINKAGES)
def test_a_chain_takes_one_merge_a_round(kind: str) -> None:
    """Each gap a little wider than the last: the worst case for merging in rounds."""
    places = torch.cumsum(1.2 ** torch.arange(30, dtype=torch.float64), 0)
    features = places.view(1, 30, 1)
    for k in (25, 10, 2):
        assert agglomerative_labels(features, k, kind)[0].tolist() == by_scipy(features[0], k, kind)


def bounded(features: Tensor, k: int, kind: str, sizes: Tensor | None = None) -> Tensor:
    """What devices and exported programs that must not wait for the data compute."""
    tokens = features.shape[1]
    own = torch.arange(tokens).expand(features.shape[:2])
    if k == tokens:
        return own
    return ours._cut(ours._merge_bounded(features, own, tokens - k, kind, sizes), own, tokens - k)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.data(), st.sampled_from(LINKAGES), st.booleans())
def test_the_bounded_form_leaves_exactly_k(
    tokens: int, data: st.DataObject, kind: str, tied: bool
) -> None:
    k = data.draw(st.integers(1, tokens))
    features = drawn(data.draw(st.integers(0, 10**6)), 2, tokens, 3)
    features = features.round() if tied else features
    for labels in bounded(features, k, kind).tolist():
        assert sorted(set(labels)) == list(range(k))
        assert numbered(labels) == labels


@pytest.mark.parametrize("kind", LINKAGES)
def test_the_bounded_form_is_exact_where_its_rounds_are_enough(kind: str) -> None:
    features = drawn(3, 4, 100, 16)
    # Single linkage makes chains, which take a round for each token.
    for k in (93,) if kind == "single" else (93, 80):
        assert torch.equal(bounded(features, k, kind), agglomerative_labels(features, k, kind))


def test_the_bounded_form_past_its_rounds_is_no_nonsense() -> None:
    """A chain that is not cut where its gaps are widest, but near it."""
    features = torch.cumsum(1.2 ** torch.arange(30, dtype=torch.float64), 0).view(1, 30, 1)
    exact, rough = agglomerative_labels(features, 10), bounded(features, 10, "ward")

    def error(labels: Tensor) -> float:
        return sum(
            float((features[labels == c] - features[labels == c].mean()).square().sum())
            for c in range(10)
        )

    halves = (torch.arange(30) * 10 // 30).view(1, 30)
    assert error(exact) <= error(rough) < error(halves)


@pytest.mark.parametrize("kind", LINKAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_tokens_are_merged_and_the_result_is_the_same_each_time(
    kind: str, dtype: torch.dtype
) -> None:
    """Ties everywhere: distances of equal tokens differ by rounding alone, or not at all."""
    distinct = drawn(11, 1, 9, 5).to(dtype)
    index = torch.arange(54) * 7 % 9
    labels = agglomerative_labels(distinct[:, index], 9, kind)
    assert labels[0].tolist() == numbered(index.tolist())
    assert torch.equal(labels, agglomerative_labels(distinct[:, index], 9, kind))
    every = agglomerative_labels(torch.zeros(2, 12, 3, dtype=dtype), 5, kind)
    assert all(sorted(set(image)) == list(range(5)) for image in every.tolist())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_tokens_that_are_not_finite_end_it_all_the_same(bad: float) -> None:
    features = drawn(2, 2, 12, 3)
    features[0, 4] = bad
    for labels in (agglomerative_labels(features, 5), bounded(features, 5, "ward")):
        assert labels.min() >= 0
        assert labels.max() == 4
    assert agglomerative_labels(features, 5)[1].tolist() == by_scipy(features[1], 5, "ward")


def test_compiled_it_is_one_operator_and_the_same() -> None:
    features = drawn(9, 2, 30, 4)
    compiled = torch.compile(agglomerative_labels, fullgraph=True, backend="aot_eager")
    assert torch.equal(
        compiled(features, 21, "average"), agglomerative_labels(features, 21, "average")
    )


def test_exported_it_needs_nothing_of_ours() -> None:
    class Labels(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return agglomerative_labels(x, 24, "average")

    features = drawn(9, 2, 30, 4)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Labels(), (features,), dynamic_shapes=({0: batch},))
    assert not any("tokenpool" in str(node.target) for node in program.graph.nodes)
    more = drawn(10, 5, 30, 4)
    assert torch.equal(program.module()(more), agglomerative_labels(more, 24, "average"))


def test_heights_are_those_of_scipy() -> None:
    features = drawn(13, 1, 25, 4)
    own = torch.arange(25).expand(1, -1)
    merges = ours._merge_at_will(features, own, 24, "average", None)
    found = np.sort(merges.heights[0, 1:].numpy())
    expected = linkage(features[0].numpy(), "average", metric="sqeuclidean")[:, 2]
    np.testing.assert_allclose(found, expected)
