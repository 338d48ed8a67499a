"""Whatever timm's VisionTransformer can be built with comes back, or is refused by name.

M5 of the field: QuickGELU, packed MLPs and stems were found out only after all the work.
"""

import json
from functools import partial

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import GluMlp, SwiGLU, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import tokenpool as tp
from tokenpool.models.architecture import build, describe
from tokenpool.models.preprocessing import class_names, image_config

SMALL = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5)

GRID = [
    {},
    # Gated MLPs: the field's packed one, with the other gate, another activation, a norm.
    dict(mlp_layer=SwiGLUPacked),
    dict(mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, mlp_ratio=2.7),
    dict(mlp_layer=GluMlp, act_layer="sigmoid"),
    dict(mlp_layer=SwiGLU, act_layer=nn.SiLU),
    dict(mlp_layer=SwiGLU, scale_mlp_norm=True),
    # Activations: the field's QuickGELU and GELUTanh, and neighbours with and without parameters.
    dict(act_layer="quick_gelu"),
    dict(act_layer="gelu_tanh"),
    dict(act_layer=partial(nn.GELU, approximate="tanh")),
    dict(act_layer="prelu"),
    dict(act_layer="hard_swish"),
    dict(act_layer="leaky_relu"),
    # Norms.
    dict(norm_layer="rmsnorm"),
    dict(norm_layer="layernormfp32"),
    dict(norm_layer=partial(nn.LayerNorm, eps=1e-3)),
    dict(embed_norm_layer="layernorm"),
    dict(qk_norm=True, scale_attn_norm=True),
    dict(pre_norm=True),
    dict(final_norm=False),
    dict(init_values=1e-5),
    # Heads and tokens.
    dict(global_pool="avg"),
    dict(global_pool="avg", fc_norm=False, pool_include_prefix=True),
    dict(global_pool="avgmax"),
    dict(global_pool="max", class_token=False),
    dict(global_pool="map", class_token=False),
    dict(reg_tokens=4),
    dict(reg_tokens=4, no_embed_class=True),
    dict(num_classes=0),
    dict(pos_embed="none"),
    dict(qkv_bias=False, proj_bias=False),
    # Images.
    dict(in_chans=1),
    dict(in_chans=4),
    dict(img_size=(32, 48), patch_size=(8, 4)),
    dict(dynamic_img_size=True, dynamic_img_pad=True),
    dict(patch_drop_rate=0.25, drop_path_rate=0.1, proj_drop_rate=0.1),
]


def randomised(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def pixels(model):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, model.in_chans, *model.patch_embed.img_size, generator=generator)


@pytest.mark.parametrize("changes", GRID, ids=str)
def test_described_and_built_again_it_is_the_same_model(changes):
    model = randomised(VisionTransformer(**{**SMALL, **changes}))
    described = json.loads(json.dumps(describe(model)))
    again = build(described).eval()
    again.load_state_dict(model.state_dict(), strict=True)
    kinds = [(n, type(m)) for n, m in model.named_modules()]
    assert kinds == [(n, type(m)) for n, m in again.named_modules()]
    with torch.no_grad():
        assert torch.equal(again(pixels(model)), model(pixels(model)))


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_r_s16_p8_224",  # the field's stem
        "vit_small_resnet26d_224",  # a whole network as stem
        "vit_base_mci_224",  # MobileCLIP's
        "deit_tiny_distilled_patch16_224",
    ],
)
def test_stems_and_timms_own_are_saved_and_loaded(tmp_path, name):
    small = dict(depth=1, img_size=64) if "distilled" not in name else dict(depth=1)
    if name == "vit_base_mci_224":
        small = dict(depth=1)
    model = timm.create_model(name, **small)
    model.reset_classifier(7)
    model.eval()
    again = tp.load(tp.save(model, tmp_path / "m"))
    with torch.no_grad():
        assert torch.equal(again(pixels(model)), model(pixels(model)))


def own(cls=nn.Module):
    class Own(cls):
        def forward(self, x):
            return x

    return Own


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: VisionTransformer(**SMALL, act_layer=own()), "as activation cannot be saved"),
        (lambda: VisionTransformer(**SMALL, norm_layer=lambda w, **k: nn.Identity()), "Identity"),
        (lambda: timm.create_model("resnet10t"), "ResNet"),
    ],
)
def test_what_nothing_describes_is_refused_by_name(change, said):
    with pytest.raises(ValueError, match=said):
        describe(change())


def test_another_number_of_heads_in_one_block_is_refused():
    model = VisionTransformer(**SMALL)
    model.blocks[1].attn.num_heads = 4
    with pytest.raises(ValueError, match=r"blocks have \[2, 4\] heads"):
        describe(model)


def test_preprocessing_travels_and_old_folders_load_as_before(tmp_path):
    model = VisionTransformer(**{**SMALL, "img_size": (32, 48)})
    plain = tp.load(tp.save(model, tmp_path / "old"))
    assert not hasattr(plain, "pretrained_cfg")
    assert "preprocessing" not in json.loads((tmp_path / "old" / "model.json").read_text())
    model.pretrained_cfg = {
        "mean": (0.1, 0.2, 0.3),
        "std": torch.tensor([0.5, 0.25, 0.125]),
        "crop_pct": 0.9,
        "crop_mode": "squash",
        "interpolation": "bicubic",
        "input_size": (3, 224, 224),  # of the model it comes from
        "label_names": list("abcde"),
        "hf_hub_id": "somebody/something",
    }
    again = tp.load(tp.save(tp.pool(model, (20, 9)), tmp_path / "new"))
    assert resolve_model_data_config(again) == {
        "input_size": (3, 32, 48),
        "interpolation": "bicubic",
        "mean": (0.1, 0.2, 0.3),
        "std": (0.5, 0.25, 0.125),
        "crop_pct": 0.9,
        "crop_mode": "squash",
    }
    assert class_names(again) == list("abcde")
    # And on: saved again, and after the pooling is taken away.
    third = tp.load(tp.save(tp.pool(again, None), tmp_path / "third"))
    assert image_config(third) == image_config(again) and class_names(third) == list("abcde")
    assert class_names(tp.inherit_width(third, 16)) == list("abcde")


@pytest.mark.parametrize(
    "config",
    [{"mean": "grey"}, {"std": (0.0, 1.0, 1.0)}, {"mean": (float("nan"),)}, {"crop_pct": "all"}],
)
def test_preprocessing_that_makes_no_sense_is_refused(tmp_path, config):
    model = VisionTransformer(**SMALL)
    model.pretrained_cfg = config
    with pytest.raises(ValueError, match="pretrained_cfg"):
        tp.save(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()
