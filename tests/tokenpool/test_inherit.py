"""Narrower models made of wider ones."""

import copy

import pytest
import timm
import torch

import tokenpool as tp
from tokenpool.models.inherit import channel_importance


def wide(**options):
    torch.manual_seed(0)
    return tp.build_vit(16, 4, 48, 3, 6, 5, **options).eval()


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "options", [{}, {"reg_tokens": 2}, {"init_values": 0.1}, {"qk_norm": True}, {"qkv_bias": False}]
)
def test_the_full_width_is_the_identity(options):
    model = wide(**options)
    twin = tp.inherit_width(model, 48)
    assert twin is not model
    assert torch.equal(twin(X), model(X))
    with torch.no_grad():
        twin.cls_token.add_(1)
    assert not torch.equal(twin.cls_token, model.cls_token)


@pytest.mark.parametrize(
    "name",
    ["deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "vit_medium_patch16_gap_240"],
)
def test_real_timm_models(name):
    model = timm.create_model(name, num_classes=4, depth=2).eval()
    x = torch.randn(1, 3, *model.patch_embed.img_size)
    with torch.no_grad():
        assert torch.equal(tp.inherit_width(model, model.embed_dim)(x), model(x))
        narrow = tp.inherit_width(model, model.embed_dim - 64)
        assert narrow(x).shape == (1, 4) and narrow.embed_dim == model.embed_dim - 64


def test_a_model_padded_with_dead_parts_shrinks_back_exactly():
    """Channels, heads and units of zero weight are the first to go, and nothing is lost.

    Layer norms see the mean over channels, so the norms are switched off for an exact comparison.
    """
    small = tp.build_vit(16, 4, 24, 2, 3, 5, norm_layer=torch.nn.LayerNorm).eval()
    large = tp.build_vit(16, 4, 48, 2, 6, 5, norm_layer=torch.nn.LayerNorm).eval()
    places = torch.randperm(48, generator=torch.Generator().manual_seed(2))[:24].sort().values
    heads = torch.tensor([1, 2, 5])
    inner = (heads[:, None] * 8 + torch.arange(8)).flatten()
    rows = torch.cat([inner + 48 * part for part in range(3)])
    units = torch.randperm(192, generator=torch.Generator().manual_seed(3))[:96].sort().values
    index = {
        "qkv": (rows, places),
        "proj": (places, inner),
        "fc1": (units, places),
        "fc2": (places, units),
    }
    with torch.no_grad():
        for name, value in large.named_parameters():
            source = small.get_parameter(name)
            value.zero_()
            kind = name.split(".")[-2] if "." in name else name
            if name.startswith("patch_embed"):
                value[places] = source
            elif kind in index:
                value[index[kind][0]] = source if value.dim() == 1 else 0
                if value.dim() == 2:
                    value[index[kind][0][:, None], index[kind][1]] = source
            elif name == "head.bias":
                value.copy_(source)
            else:
                value[..., places] = source
        torch.nn.init.normal_(small.pos_embed)
        large.pos_embed.zero_()
        large.pos_embed[..., places] = small.pos_embed
    narrow = tp.inherit_width(large, 24)
    for name, value in narrow.named_parameters():
        assert torch.equal(value, small.get_parameter(name)), name
    assert torch.equal(narrow(X), small(X))


def test_the_most_important_channels_are_kept():
    model = wide()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj.weight[[3, 40]] *= 100
    assert set(channel_importance(model).argsort(descending=True)[:2].tolist()) == {3, 40}
    narrow = tp.inherit_width(model, 16)
    kept = [
        i
        for i in range(48)
        if any(torch.equal(model.pos_embed[..., i], c) for c in narrow.pos_embed.unbind(-1))
    ]
    assert len(kept) == 16 and {3, 40} <= set(kept)


def test_pooling_mode_and_flags_come_along_and_the_wide_model_is_left_alone():
    model = tp.pool(wide(), (9, 7, 5), "kmeans", features="keys").train()
    model.patch_embed.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    narrow = tp.inherit_width(model, 24)
    assert tp.pooling_of(narrow)[:2] == ((9, 7, 5), "kmeans")
    assert tp.pooling_of(narrow).options.features == "keys" and narrow.training
    assert not narrow.patch_embed.proj.weight.requires_grad and narrow.head.weight.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    narrow(X).sum().backward()


def test_widths_that_cut_heads_are_refused():
    for width, message in (
        (49, "width 49 cannot inherit from a model of width 48"),
        (20, "not a whole number of heads of 8: use 16 or 24"),
        (3, "not a whole number of heads of 8: use 8 or 16"),
        (0, "width 0 cannot inherit"),
    ):
        with pytest.raises(ValueError, match=message):
            tp.inherit_width(wide(), width)
