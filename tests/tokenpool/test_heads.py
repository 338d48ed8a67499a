"""Heads that read patches count a merged token as often as it stands for one.

The oracle is the dense model: where only equal tokens are merged, its logits must come out.
"""

import copy

import pytest
import torch
from thinning import crossed
from timm.models.vision_transformer import VisionTransformer

import tokenpool as tp
from tokenpool.methods import method as method_named

MERGING = sorted(
    (name for name in tp.METHODS if method_named(name).merges), key=lambda name: name != "wkmedoids"
)
# Even and odd places hold the same kinds, in unequal numbers; each quarter of the grid is of one.
KINDS = [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]
HEADS = {
    "token": {},
    "avg": {"global_pool": "avg", "class_token": False},
    "avg beside a class token": {"global_pool": "avg"},
    "max": {"global_pool": "max"},
    "avgmax": {"global_pool": "avgmax"},
    "map": {"global_pool": "map"},
    # The neighbours that the field script does not know: prefix tokens in the mean or the
    # attention, the norm before or after it, attention among all tokens, no pooling at all.
    "prefix in the mean": {"global_pool": "avg", "pool_include_prefix": True, "reg_tokens": 2},
    "prefix in the map": {"global_pool": "map", "pool_include_prefix": True},
    "norm before": {"global_pool": "avg", "fc_norm": False},
    "norm after a token": {"global_pool": "token", "fc_norm": True},
    "refined": {"global_pool": "prr", "class_token": False},
    "all tokens": {"global_pool": "", "num_classes": 0},
}


def model_of(**options):
    torch.manual_seed(0)
    settings = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
    settings |= {"num_classes": 5, "pos_embed": "none"} | options
    model = VisionTransformer(**settings).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def image_of(kinds=KINDS):
    generator = torch.Generator().manual_seed(1)
    patches = torch.randn(2, max(kinds) + 1, 3, 4, 4, generator=generator)[:, kinds]
    return patches.view(2, 4, 4, 3, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 16, 16)


@torch.no_grad()
@pytest.mark.parametrize(("method", "head"), crossed(MERGING, list(HEADS)))
def test_merging_equal_tokens_gives_the_dense_logits(method, head):
    model, x = model_of(**HEADS[head]), image_of()
    dense, seen = model(x), model.forward_features(x)
    options = {} if method == "tome" else {"start": "matching"}
    if model.global_pool == "token":
        # With a class token the paper's methods do not count keys, unless they are asked to.
        options["proportional_attention"] = True
    # Twice: what the second merges, and the last block attends to, stands for unequal numbers.
    schedule = {"grid": (4, 4, 4), "tome": (8, 8, 6)}.get(method, (9, 6, 6))
    for position in ("block", "attention"):
        pooled = tp.pool(copy.deepcopy(model), schedule, method, position=position, **options)
        torch.testing.assert_close(pooled(x), dense, atol=1e-5, rtol=1e-5)
        features = pooled.forward_features(x)
        torch.testing.assert_close(pooled.forward_head(features), dense, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            pooled.forward_head(features, pre_logits=True),
            model.forward_head(seen, pre_logits=True),
            atol=1e-5,
            rtol=1e-5,
        )
        if model.global_pool != "token":
            torch.testing.assert_close(features, seen, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("method", ["wkmeans", "kmedoids", "wkmedoids"])
def test_more_centres_than_kinds_leave_empty_clusters_that_count_for_nothing(method):
    """13 of 16 tokens are significant, so at least one of each kind: the others start at equals."""
    model, x = model_of(global_pool="avg", class_token=False), image_of()
    pooled = tp.pool(copy.deepcopy(model), (13, 13, 13), method)
    torch.testing.assert_close(pooled(x), model(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_average_counts_sizes_where_tokens_differ():
    """By hand: the mean over all patches of the token that stands for each."""
    model = model_of(global_pool="avg", class_token=False)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    pooled = tp.pool(model, (9, 9, 4), "wkmedoids")
    last = {}
    pooled.norm.register_forward_hook(lambda module, given, out: last.update(tokens=given[0]))
    with tp.record(pooled) as found:
        logits = pooled(x)
    tokens, place = last["tokens"], found.assignment()
    kept = torch.stack([tokens[i].unique(dim=0) for i in range(2)])
    assert kept.shape == (2, 4, 16)
    by_hand = torch.stack(
        [
            sum(tokens[i][place[i] == j][0] * (place[i] == j).sum() for j in range(4)) / 16
            for i in range(2)
        ]
    )
    expected = model.head(model.fc_norm(by_hand))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(tp.unpool(tokens, found), tokens)


@torch.no_grad()
@pytest.mark.parametrize("method", ["powerbert", "importance", "random"])
def test_what_selection_keeps_counts_as_one(method):
    model, x = model_of(global_pool="avg", class_token=False), image_of()
    tp.pool(model, (9, 9, 4), method)
    torch.manual_seed(3)
    features = model.forward_features(x)
    assert features.shape == (2, 4, 16)
    expected = model.head(model.fc_norm(features.mean(1)))
    torch.testing.assert_close(model.forward_head(features), expected)


@torch.no_grad()
def test_a_head_that_is_changed_later_is_given_what_it_reads():
    """timm lets the pooling of a head be changed at any time, by a method or by hand."""
    model, x = model_of(), image_of()
    tp.pool(model, (8, 8, 6), "tome", cls_only_last=True)
    assert model.forward_features(x).shape == (2, 1, 16)
    model.reset_classifier(7, "avg")
    assert model.forward_features(x).shape == (2, 17, 16)
    dense = tp.pool(copy.deepcopy(model), None)
    torch.testing.assert_close(model(x), dense(x), atol=1e-5, rtol=1e-5)
    model.global_pool = dense.global_pool = "token"
    torch.testing.assert_close(model(x), dense(x), atol=1e-5, rtol=1e-5)
    assert copy.deepcopy(model).forward_features(x).shape == (2, 1, 16)


@torch.no_grad()
def test_the_papers_methods_keep_their_meaning_with_a_class_token():
    """No sizes are counted: neither in means nor in attention, whatever the default for others."""
    model = model_of()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    for method in ("kmeans", "kmedoids", "wkmeans", "wkmedoids"):
        given = []
        tp.pool(model, (12, 8, 4), method)
        for block in model.blocks:
            block.observer = lambda plan, tokens, pooled, given=given: given.append(tokens)
        model(x)
        assert [tokens.sizes for tokens in given] == [None] * 3
        assert not any(block.proportional for block in model.blocks)


@torch.no_grad()
def test_sizes_weigh_the_means_and_can_be_left_out():
    """A mean of means weighted by size is the mean of all: k-means to one token, twice."""
    model = model_of()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    for weighted in (True, False):
        seen = []
        tp.pool(
            model, (16, 5, 1), "kmeans", proportional_attention=True, size_weighted=weighted,
            iterations=1, start="matching",
        )  # fmt: skip
        for block in model.blocks:
            block.observer = lambda plan, tokens, pooled, seen=seen: seen.append((tokens, pooled))
        model(x)
        (_, first), (second, one) = seen
        sizes = torch.stack([torch.bincount(a, minlength=5) for a in first.assignment]).float()
        assert weighted == (second.sizes is not None)
        weights = sizes if weighted else torch.ones_like(sizes)
        mean = (second.tokens * weights.unsqueeze(2)).sum(1) / weights.sum(1, keepdim=True)
        torch.testing.assert_close(one.tokens[:, 0], mean, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_significance_counts_a_merged_token_as_all_it_stands_for():
    """What merged tokens receive is what the unmerged ones received together."""
    model = model_of(depth=2)
    x = image_of([0] * 6 + [1] * 10)
    given = {}
    tp.pool(model, (16, 8), "powerbert")
    model.blocks[1].observer = lambda plan, tokens, pooled: given.update(dense=tokens.scores)
    model(x)
    tp.pool(model, (2, 1), "wkmeans", start="matching", proportional_attention=True)
    model.blocks[1].observer = lambda plan, tokens, pooled: given.update(two=tokens.scores)
    model(x)
    dense = torch.stack((given["dense"][:, :6].sum(1), given["dense"][:, 6:].sum(1)), 1)
    torch.testing.assert_close(given["two"].sort().values, dense.sort().values)


def test_attention_stays_fused_where_nobody_asks_for_significance(monkeypatch):
    """With the matching start, unweighted, on tokens or keys: attention is one fused operator."""
    from tokenpool import attention

    def unfused(*args):
        raise AssertionError("attention was computed unfused")

    monkeypatch.setattr(attention, "_attention", unfused)
    model, x = model_of(depth=2), image_of()
    for block in model.blocks:
        block.attn.fused_attn = True
    for method in ("kmeans", "kmedoids", "tome", "grid", "dpc", "agglomerative", "random"):
        tp.pool(model, (8, 4), method, start="matching")(x)
    for method, options in (
        ("kmeans", {}),
        ("wkmeans", {"start": "matching"}),
        ("kmedoids", {"start": "matching", "representative": "weighted_mean"}),
    ):
        with pytest.raises(AssertionError, match="unfused"):
            tp.pool(model, (8, 4), method, **options)(x)
