"""Dense features of pooled models: full maps, by all the ways timm has to ask for them."""

import copy

import pytest
import timm
import torch
from timm.models._features import FeatureGetterNet
from timm.models.vision_transformer import VisionTransformer

import tokenpool as tp

SCHEDULE = (13, 13, 9, 5)


def model_and_images(**options):
    torch.manual_seed(0)
    settings = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 3}
    model = VisionTransformer(**(settings | {"num_classes": 5} | options)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model, torch.randn(2, 3, 16, 16)


def block_outputs(model, x):
    """What each block of a pooled model leaves, and the trace of the same pass."""
    left = []
    handles = [b.register_forward_hook(lambda m, i, out: left.append(out)) for b in model.blocks]
    with tp.record(model) as found:
        model(x)
    for handle in handles:
        handle.remove()
    return left, found


@torch.no_grad()
@pytest.mark.parametrize("method", tp.METHODS)
@pytest.mark.parametrize("options", [{}, {"proportional_attention": True}], ids=str)
def test_every_map_is_the_unpooled_one(method, options):
    model, x = model_and_images(reg_tokens=1)
    tp.pool(model, SCHEDULE, method, **options, generator=torch.Generator())
    model.blocks[0].plan.options.generator.manual_seed(0)
    left, found = block_outputs(model, x)
    model.blocks[0].plan.options.generator.manual_seed(0)
    final, maps = model.forward_intermediates(x, return_prefix_tokens=True)
    assert final.shape == (2, 18, 24)
    for index, (patches, prefix) in enumerate(maps):
        place = found.assignment(after=index)
        rows = left[index][:, 2:].gather(1, place.unsqueeze(2).expand(-1, -1, 24))
        assert torch.equal(patches, rows.transpose(1, 2).unflatten(2, (4, 4)))
        assert torch.equal(prefix, left[index][:, :2])
    assert torch.equal(final[:, :2], model.norm(left[-1][:, :2]))


@torch.no_grad()
@pytest.mark.parametrize("head", ["token", "avg", "map", ""])
def test_neighbours_of_the_call(head):
    """Other heads, indices, formats and results than the field script's two calls."""
    model, x = model_and_images(global_pool=head)
    dense = copy.deepcopy(model)
    tp.pool(model, SCHEDULE, "tome", cls_only_last=head == "token")
    for arguments in (
        {"n": 2},
        {"n": [0, 3], "norm": True},
        {"n": (1,), "reshape": True, "norm": True},
        {"n": [2], "return_prefix_tokens": True},
    ):
        ours = model.get_intermediate_layers(x, **arguments)
        theirs = dense.get_intermediate_layers(x, **arguments)
        assert _shapes(ours) == _shapes(theirs)
    for arguments in (
        {"indices": 1, "stop_early": True, "output_fmt": "NLC"},
        {"output_dict": True, "return_prefix_tokens": True, "norm": True},
    ):
        ours = model.forward_intermediates(x, **arguments)
        assert _shapes(ours) == _shapes(dense.forward_intermediates(x, **arguments))
    model.set_grad_checkpointing()
    assert len(model.forward_intermediates(x, intermediates_only=True)) == 4


def _shapes(found):
    if isinstance(found, dict):
        return {key: _shapes(value) for key, value in found.items()}
    return found.shape if torch.is_tensor(found) else [_shapes(value) for value in found]


@torch.no_grad()
def test_a_dense_schedule_and_unpooling_change_not_one_bit():
    model, x = model_and_images()
    before = model.get_intermediate_layers(x, n=4)
    tp.pool(model, tp.Schedule.dense(4, 16), "tome")
    for ours, theirs in zip(model.get_intermediate_layers(x, n=4), before, strict=True):
        assert torch.equal(ours, theirs)
    tp.pool(model, None)
    assert "forward_intermediates" not in model.__dict__
    assert torch.equal(model.get_intermediate_layers(x, n=4)[0], before[0])


def test_copies_have_features_of_their_own_and_gradients_flow():
    model, x = model_and_images()
    twin = copy.deepcopy(tp.pool(model, SCHEDULE))
    expected = twin.get_intermediate_layers(x)[0]
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(twin.get_intermediate_layers(x)[0], expected)
    expected.square().sum().backward()
    assert all(p.grad is not None for p in twin.blocks.parameters())


@torch.no_grad()
def test_timms_feature_wrapper_round_a_pooled_model():
    model, x = model_and_images()
    net = FeatureGetterNet(tp.pool(model, SCHEDULE, "tome"), out_indices=[1, 3])
    assert [tuple(f.shape) for f in net(x)] == [(2, 24, 4, 4)] * 2


@torch.no_grad()
def test_a_model_of_features_only_can_be_pooled_within():
    net = timm.create_model(
        "vit_tiny_patch16_224", features_only=True, out_indices=[1, 2], img_size=64
    ).eval()
    with pytest.raises(ValueError, match=r"FeatureGetterNet cannot be pooled.*pool its \.model"):
        tp.pool(net, (12, 9, 9))
    tp.pool(net.model, (12, 9, 9), "tome")
    assert [tuple(f.shape) for f in net(torch.randn(1, 3, 64, 64))] == [(1, 192, 4, 4)] * 2


@torch.no_grad()
def test_a_model_that_loses_blocks_after_pooling_still_ends_in_tokens():
    model, x = model_and_images()
    tp.pool(model, SCHEDULE, "tome")
    model.prune_intermediate_layers(2, prune_head=False)
    assert len(model.blocks) == 4
    model.blocks = model.blocks[:3]
    assert model.forward_features(x).shape == (2, 10, 24)
    assert tp.pooling_of(model).schedule == (13, 13, 9)


@torch.no_grad()
def test_hooks_see_tensors_and_may_change_them():
    """Also where sizes go with the tokens: before, after and around each block."""
    model, x = model_and_images()
    tp.pool(model, SCHEDULE, "tome")
    expected, seen = model(x), []
    handles = [
        model.blocks[2].register_forward_pre_hook(lambda m, args: seen.append(args[0].shape)),
        model.blocks[1].register_forward_hook(lambda m, args, out: out * 1),
        model.blocks[2].register_forward_pre_hook(
            lambda m, args, kwargs: ((args[0] + 0,), kwargs), with_kwargs=True
        ),
    ]
    assert torch.equal(model(x), expected) and seen == [(2, 14, 24)]
    for handle in handles:
        handle.remove()
    model.blocks[1].register_forward_hook(lambda m, args, out: out * 0)
    assert not torch.equal(model(x), expected)


def test_an_attention_mask_is_refused_in_one_line():
    model, x = model_and_images()
    tp.pool(model, SCHEDULE)
    mask = torch.zeros(17, 17)
    for call in (
        model.forward_features,
        model.forward_intermediates,
        model.get_intermediate_layers,
    ):
        with pytest.raises(ValueError, match="block 1 pools 16 tokens to 13: an attention mask"):
            call(x, attn_mask=mask)
    tp.pool(model, tp.Schedule.dense(4, 16))
    assert model.forward_features(x, attn_mask=mask).shape == (2, 17, 24)
    tp.pool(model, tp.Schedule.dense(4, 16), cls_only_last=True)
    with pytest.raises(ValueError, match="block 4 computes only the tokens its head reads"):
        model(x, attn_mask=mask)
