"""A method with its options as text: the same model, the same cost, and back again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenpool as tp
from tokenpool.cost import block_macs
from tokenpool.options import PoolOptions

OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "iterations": st.integers(0, 9),
        "features": st.sampled_from(["tokens", "keys"]),
        "representative": st.sampled_from([None, "medoid", "mean", "weighted_mean"]),
        "proportional_attention": st.sampled_from([None, True, False]),
        "cls_only_last": st.booleans(),
        "start": st.sampled_from(["significance", "matching"]),
    },
)


@given(name=st.sampled_from(tp.METHODS), options=OPTIONS)
def test_what_is_written_reads_back(name: str, options: dict) -> None:
    wanted = PoolOptions.of(**options)
    assert tp.parse_method(tp.format_method(name, wanted)) == (name, wanted)


def test_order_and_spaces_do_not_matter() -> None:
    one = tp.parse_method(" wkmedoids( start = matching ,iterations=3 )")
    assert one == tp.parse_method("wkmedoids(iterations=3, start=matching)")
    assert tp.format_method(*one) == "wkmedoids(iterations=3, start=matching)"
    assert tp.format_method("tome") == "tome"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kmeens", "kmeens"),
        ("kmeans(start=matching", "should read"),
        ("kmeans(start=matching) x", "should read"),
        ("kmeans(start)", "option=value"),
        ("kmeans(sturt=matching)", "sturt"),
        ("kmeans(start=here)", "here"),
        ("kmeans(start=matching, start=matching)", "twice"),
        ("kmeans(generator=1)", "generator"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tp.parse_method(text)


def test_a_model_and_its_cost_are_those_of_the_keywords() -> None:
    text, keywords = (
        "wkmedoids(start=matching, features=keys)",
        {
            "start": "matching",
            "features": "keys",
        },
    )
    torch.manual_seed(0)
    model = tp.build_vit(width=16, num_heads=2, depth=3, image_size=16, patch_size=4, num_classes=5)
    model.eval()
    schedule, x = tp.Schedule((9, 6, 3)), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = tp.pool(model, schedule, "wkmedoids", **keywords)(x)
        paper = tp.pool(model, schedule, "wkmedoids")(x)
        found = tp.pool(model, schedule, text)(x)
    assert torch.equal(found, expected) and not torch.equal(found, paper)
    assert tp.pooling_of(model).method_text == tp.format_method(*tp.parse_method(text))
    spec, options = tp.vit_spec(model), PoolOptions.of(**keywords)
    assert tp.vit_macs(spec, schedule, text) == tp.vit_macs(spec, schedule, "wkmedoids", options)
    assert tp.vit_macs(spec, schedule, text) != tp.vit_macs(spec, schedule, "wkmedoids")
    assert tp.macs(model) == tp.vit_macs(spec, schedule, text)
    tp.pool(model, None)
    assert tp.macs(model, schedule, text) == tp.vit_macs(spec, schedule, text)
    assert block_macs(spec, 1, 16, 9, text) == block_macs(spec, 1, 16, 9, "wkmedoids", options)


def test_an_option_given_twice_must_agree() -> None:
    model = tp.build_vit(width=16, num_heads=2, depth=2, image_size=16, patch_size=4, num_classes=5)
    tp.pool(model, (8, 4), "kmeans(start=matching)", start="matching", iterations=2)
    assert tp.pooling_of(model).options == PoolOptions.of(start="matching", iterations=2)
    with pytest.raises(ValueError, match="start"):
        tp.pool(model, (8, 4), "kmeans(start=matching)", start="significance")
