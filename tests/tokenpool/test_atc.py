"""`atc` and `agglomerative`: SciPy's clusters of what each compares, and their weighted means."""

import pytest
import timm
import torch
from scipy.cluster.hierarchy import cut_tree, linkage
from torch import Tensor

import tokenpool as tp
from tokenpool.methods import method
from tokenpool.methods.base import Pooled, TokenSet


def reduce(text: str, tokens: Tensor, features: Tensor, sizes: Tensor | None, k: int) -> Pooled:
    name, options = tp.parse_method(text)
    return method(name).reduce(TokenSet(tokens, features, None, sizes, None), k, options)


def clusters(labels: Tensor) -> set[frozenset[int]]:
    return {
        frozenset(i for i, at in enumerate(labels.tolist()) if at == label)
        for label in set(labels.tolist())
    }


@pytest.mark.parametrize("kind", [None, "average", "complete", "single"])
def test_atc_is_linkage_on_the_cosine_of_keys_with_weighted_means(kind: str | None) -> None:
    random = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 20, 6, generator=random, dtype=torch.float64)
    keys = torch.randn(2, 20, 4, generator=random, dtype=torch.float64)
    sizes = torch.randint(1, 5, (2, 20), generator=random).double()
    pooled = reduce(f"atc(linkage={kind})", tokens, keys, sizes, 9)
    for b in range(2):
        # As published, the linkage counts every token once, whatever it stands for.
        tree = linkage(keys[b].numpy(), kind or "average", metric="cosine")
        wanted = clusters(torch.from_numpy(cut_tree(tree, 9).ravel()))
        assert clusters(pooled.assignment[b]) == wanted
        for members in map(sorted, wanted):
            weights = sizes[b, members] / sizes[b, members].sum()
            mean = pooled.tokens[b, pooled.assignment[b, members[0]]]
            torch.testing.assert_close(mean, weights @ tokens[b, members])


def test_agglomerative_is_wards_linkage_with_weighted_means() -> None:
    random = torch.Generator().manual_seed(1)
    tokens = torch.randn(1, 15, 4, generator=random, dtype=torch.float64)
    sizes = torch.randint(1, 4, (1, 15), generator=random).double()
    wanted = clusters(torch.from_numpy(cut_tree(linkage(tokens[0].numpy(), "ward"), 6).ravel()))
    pooled = reduce("agglomerative", tokens, tokens, sizes, 6)
    assert clusters(pooled.assignment[0]) == wanted
    for members in map(sorted, wanted):
        weights = sizes[0, members] / sizes[0, members].sum()
        mean = pooled.tokens[0, pooled.assignment[0, members[0]]]
        torch.testing.assert_close(mean, weights @ tokens[0, members])


@pytest.mark.parametrize("name", ["atc", "pitome"])
def test_where_and_how_it_pools(name: str) -> None:
    """As published: by the keys, between attention and MLP, attention in proportion to sizes."""
    chosen, options = method(name), tp.PoolOptions()
    assert chosen.features(options) == "keys"
    assert chosen.position(options) == "attention"
    assert chosen.proportional
    assert chosen.needs_sizes
    assert not chosen.needs_scores(options)


def test_the_linkage_is_an_option_in_text_and_in_what_is_saved(tmp_path) -> None:
    assert (
        tp.format_method(*tp.parse_method("atc( linkage = complete )")) == "atc(linkage=complete)"
    )
    with pytest.raises(ValueError, match="linkage is 'centroid' but must be one of average"):
        tp.parse_method("atc(linkage=centroid)")
    model = tp.build_vit(16, 4, 24, 4, 3, 5).eval()
    x = torch.randn(2, 3, 16, 16)
    tp.pool(model, (13, 9, 9, 5), "atc(linkage=complete)")
    again = tp.load(tp.save(model, tmp_path / "model"))
    assert tp.pooling_of(again).options == tp.PoolOptions(linkage="complete")
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("text", ["atc", "agglomerative", "atc(linkage=single)"])
def test_gradients_pass_through_the_means(text: str) -> None:
    random = torch.Generator().manual_seed(3)
    tokens = torch.randn(1, 7, 3, generator=random, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(1, 7, 4, generator=random, dtype=torch.float64)
    sizes = torch.ones(1, 7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: reduce(text, t, keys, sizes, 4).tokens, (tokens,))


@pytest.mark.parametrize("text", ["atc", "agglomerative(position=attention)", "pitome"])
def test_one_graph_and_under_autocast(text: str) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=3).eval()
    tp.pool(model, (12, 9, 5), text)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(compiled, model(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.isfinite(model(x)).all()
