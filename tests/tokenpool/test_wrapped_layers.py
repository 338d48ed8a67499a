"""What stands in the place of a layer is called; what would be passed over is refused by name."""

import copy
import warnings

import pytest
import timm
import torch
from thinning import crossed, fast
from timm.layers import DiffAttention, set_fused_attn
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.utils import parametrize

import tokenpool as tp

SCHEDULE = (13, 9, 9, 5)
OPTIONS = [{}, {"cls_only_last": True}, {"significance": "cls", "cls_only_last": True}]


class LowRank(nn.Module):
    """As adapters do it: the layer itself and something beside it."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))

    def merged(self):
        plain = nn.Linear(self.base.in_features, self.base.out_features)
        plain.weight = nn.Parameter(self.base.weight + self.up.weight @ self.down.weight)
        plain.bias = self.base.bias
        return plain


class Added(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return weight + 0.1


def model_and_images(**options):
    torch.manual_seed(0)
    model = tp.build_vit(16, 4, 24, 4, 3, 5, **options).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model, torch.randn(2, 3, 16, 16)


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("layer", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"])
def test_adapters_are_what_they_are_merged(layer, options):
    """On every layer of every block, put there before the pooling or after it."""
    for before in (True, False):
        model, x = model_and_images()
        if not before:
            tp.pool(model, SCHEDULE, **options)
        wrapped = {}
        for index in range(4):
            name = f"blocks.{index}.{layer}"
            wrapped[name] = LowRank(model.get_submodule(name))
            model.set_submodule(name, wrapped[name])
        tp.pool(model, SCHEDULE, **options)
        with_adapters = model(x)
        for name, module in wrapped.items():
            model.set_submodule(name, module.merged())
        torch.testing.assert_close(with_adapters, model(x), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_hooks_and_parametrizations_of_a_projection_are_not_passed_over(options):
    """Three ways to change what qkv puts out without another class of module."""

    def by_hook(qkv):
        qkv.register_forward_hook(
            lambda module, args, out: out + args[0].sum(-1, keepdim=True) * 0.1
        )

    def by_parametrization(qkv):
        parametrize.register_parametrization(qkv, "weight", Added())

    def by_forward(qkv):
        qkv.forward = lambda x: nn.functional.linear(x, qkv.weight + 0.1, qkv.bias)

    results = []
    for change in (by_hook, by_parametrization, by_forward):
        model, x = model_and_images()
        tp.pool(model, SCHEDULE, **options)
        plain = model(x)
        change(model.blocks[3].attn.qkv)
        results.append(model(x))
        assert not torch.allclose(results[-1], plain)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_quantised_layers(options):
    """Their weight is a method: nothing may read it. Near the model itself, and counted alike."""
    model, x = model_and_images()
    tp.pool(model, SCHEDULE, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert type(quantised.blocks[3].attn.qkv) is not nn.Linear
    dense = tp.pool(quantised, tp.Schedule.dense(4, 16), **options)(x)
    close = tp.pool(model, None)(x)
    assert (dense - close).abs().max() < 0.1 * close.abs().max()
    tp.pool(model, SCHEDULE)
    tp.pool(quantised, SCHEDULE)
    assert quantised(x).shape == (2, 5)
    assert tp.macs(quantised).total == tp.macs(model).total


@torch.no_grad()
def test_replaced_mlps_and_norms_are_called():
    model, x = model_and_images()
    tp.pool(model, SCHEDULE, "wkmedoids")
    called = []

    class Noted(nn.Module):
        def __init__(self, name, inner):
            super().__init__()
            self.name, self.inner = name, inner

        def forward(self, x):
            called.append(self.name)
            return self.inner(x)

    expected = model(x)
    names = (
        "norm1",
        "attn.q_norm",
        "attn.attn_drop",
        "attn.proj_drop",
        "ls1",
        "norm2",
        "mlp",
        "ls2",
    )
    for name in names:
        model.set_submodule(
            f"blocks.0.{name}", Noted(name, model.get_submodule(f"blocks.0.{name}"))
        )
    assert torch.equal(model(x), expected)
    assert called == list(names)


@torch.no_grad()
def test_an_attention_that_is_replaced_after_pooling_is_called_or_refused():
    model, x = model_and_images()
    other, _ = model_and_images()
    expected = tp.pool(model, SCHEDULE)(x)
    model.blocks[0].attn = other.blocks[0].attn
    with pytest.raises(ValueError, match=r"attention of block 1 was replaced.*tp\.pool again"):
        model(x)
    assert torch.equal(tp.pool(model, SCHEDULE)(x), expected)
    model.blocks[0].attn = nn.Identity()
    with pytest.raises(ValueError, match="block 1 is or holds a Identity"):
        tp.pool(model, SCHEDULE)
    with pytest.raises(ValueError, match="block 1 is or holds a Identity"):
        tp.macs(model)


def test_what_a_view_would_pass_over_is_refused_before_any_work():
    """A forward put on the instance, a call compiled for the block, another class, no grid."""
    refused = "has a forward of its own"
    for name, message in (
        ("blocks.1", f"the Block of block 2 {refused}"),
        ("blocks.1.attn", f"the Attention of block 2 {refused}"),
    ):
        model, _ = model_and_images()
        module = model.get_submodule(name)
        module.forward = module.forward
        with pytest.raises(ValueError, match=message):
            tp.pool(model, SCHEDULE)
    model, _ = model_and_images()
    model.blocks[2].compile(backend="eager")
    with pytest.raises(ValueError, match="block 3 is compiled already: pool first"):
        tp.pool(model, SCHEDULE)
    model = torch.compile(model_and_images()[0], backend="eager")
    with pytest.raises(ValueError, match=r"OptimizedModule cannot be pooled.*its \._orig_mod"):
        tp.pool(model, SCHEDULE)

    class Tuned(type(model_and_images()[0].blocks[0].attn)):
        pass

    small = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 3}
    for kind, message in ((Tuned, "Tuned"), (DiffAttention, "DiffAttention")):
        with pytest.raises(ValueError, match=f"block 1 is or holds a {message}"):
            tp.pool(VisionTransformer(**small, attn_layer=kind), SCHEDULE)
    model, _ = model_and_images()
    del model.patch_embed.grid_size
    with pytest.raises(ValueError, match="the PatchEmbed of this VisionTransformer does not say"):
        tp.pool(model, SCHEDULE)
    with pytest.raises(ValueError, match="has no blocks"):
        tp.pool(VisionTransformer(**(small | {"depth": 0})), ())
    with pytest.raises(
        ValueError, match="grid pools a whole grid of tokens, but this model's patch"
    ):
        tp.pool(VisionTransformer(**small, patch_drop_rate=0.5), SCHEDULE, "grid")


@torch.no_grad()
@pytest.mark.parametrize("method", fast(3, ["wkmedoids", "tome", "grid", "powerbert", "atc"]))
def test_a_block_compiled_after_pooling_runs_the_pooling(method):
    model, x = model_and_images()
    expected = tp.pool(model, SCHEDULE, method)(x)
    torch._dynamo.reset()
    model.blocks[0].compile(backend="eager")
    torch.testing.assert_close(model(x), expected)
    dense = tp.pool(model, None)(x)
    torch.testing.assert_close(dense, model_and_images()[0](x))


@torch.no_grad()
@pytest.mark.parametrize(("method", "fused"), crossed(tp.METHODS, [True, False]))
def test_no_images_give_no_logits(method, fused):
    """As the dense model does, also for heads that read patches and maps of features."""
    set_fused_attn(fused)
    try:
        for options in ({}, {"class_token": False, "global_pool": "avg"}, {"global_pool": "map"}):
            model, x = model_and_images(**options)
            tp.pool(model, SCHEDULE, method)
            assert model(x[:0]).shape == (0, 5)
            assert model.get_intermediate_layers(x[:0])[0].shape == (0, 16, 24)
        model = tp.pool(model_and_images()[0], SCHEDULE, method, cls_only_last=True)
        assert model(x[:0]).shape == (0, 5)
    finally:
        set_fused_attn(True)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_numbers_of_channels(channels):
    """Grey, and those of satellites: costs, traces, maps of features."""
    model, _ = model_and_images(in_chans=channels)
    tp.pool(model, SCHEDULE)
    x = torch.randn(2, channels, 16, 16)
    tokens, found = tp.trace(model, x)
    assert tp.unpool(tokens, found).shape == (2, 17, 24)
    assert tp.macs(model).patch_embed == 16 * channels * 16 * 24
    assert model.get_intermediate_layers(x, reshape=True)[0].shape == (2, 24, 4, 4)


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["vit", "gap", "vit_small_patch16_dinov3", "naflexvit_base_patch16_map"]
)
@pytest.mark.parametrize("method", ["leader", "wkmedoids"])
@pytest.mark.parametrize("place", [0, 2])
def test_a_block_of_timms_put_in_after_pooling_is_one_clear_line(tmp_path, name, method, place):
    """Never half a pooled model in silence; pooled again it is right."""
    small = {"patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 3, "num_classes": 5}
    if name in ("vit", "gap"):
        head = {"global_pool": "avg", "class_token": False} if name == "gap" else {}
        model = VisionTransformer(img_size=16, **small, **head)
    else:
        size = {"pos_embed_grid_size": (4, 4)} if "naflex" in name else {"img_size": 16}
        model = timm.create_model(name, **small, **size)
    model.eval()
    x = torch.randn(2, 3, 16, 16)
    plain = copy.deepcopy(model.blocks[place])
    expected = tp.pool(model, SCHEDULE, method)(x)
    model.blocks[place] = plain
    refused = rf"block {place + 1} is a \w*Block that was put into the model after it was pooled"
    for use in (tp.macs, tp.pooling_of, lambda m: tp.save(m, tmp_path / "m"),
                lambda m: m.forward_intermediates(x)):  # fmt: skip
        with pytest.raises(ValueError, match=refused):
            use(model)
    if (name, method) == ("vit", "wkmedoids"):  # tokens say all there is: it is a dense block
        dense = (16 if place == 0 else SCHEDULE[place - 1], *SCHEDULE[place + 1 :])
        assert torch.equal(
            model(x), tp.pool(copy.deepcopy(model), SCHEDULE[:place] + dense, method)(x)
        )
    else:
        with pytest.raises(ValueError, match=refused):
            model(x)
    assert torch.equal(tp.pool(model, SCHEDULE, method)(x), expected)
