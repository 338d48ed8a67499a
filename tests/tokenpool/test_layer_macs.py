"""MACs of models whose layers are not timm's usual ones, against PyTorch's operator counter."""

import pytest
import timm
import torch
from timm.layers import GluMlp, SwiGLU, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tokenpool as tp


class Beside(nn.Linear):
    """An adapter whose matrices are bare parameters: no Linear to be found within."""

    def __init__(self, width, out):
        super().__init__(width, out)
        self.down = nn.Parameter(torch.randn(width, 3))
        self.up = nn.Parameter(torch.randn(3, out))

    def forward(self, x):
        return super().forward(x) + x @ self.down @ self.up


def build(**options):
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
    return VisionTransformer(**(settings | {"num_classes": 7} | options)).eval()


def hybrid(**options):
    name = "vit_tiny_r_s16_p8_224"
    return timm.create_model(name, num_classes=7, img_size=64, depth=3, **options).eval()


def uneven():
    """One block with adapters, one with a pruned MLP: blocks that cost differently."""
    model = build()
    model.blocks[0].attn.qkv = Beside(24, 72)
    model.blocks[1].mlp.fc1, model.blocks[1].mlp.fc2 = nn.Linear(24, 31), nn.Linear(31, 24)
    return model


def deep_head():
    model = build()
    model.head = nn.Sequential(nn.Linear(24, 50), nn.GELU(), nn.Linear(50, 7))
    return model


# Those of the field script (packed, SwiGLU, hybrid) and their neighbours.
MODELS = {
    "packed": lambda: build(mlp_layer=SwiGLUPacked),
    "swiglu": lambda: build(mlp_layer=SwiGLU, scale_mlp_norm=True),
    "glu": lambda: build(mlp_layer=GluMlp),
    "hybrid": hybrid,
    "hybrid of one channel": lambda: hybrid(in_chans=1),
    "map": lambda: build(global_pool="map"),
    "map with prefix": lambda: build(global_pool="map", pool_include_prefix=True, reg_tokens=2),
    "refined": lambda: build(global_pool="prr"),
    "every token": lambda: build(global_pool=""),
    "average": lambda: build(global_pool="avg", class_token=False),
    "registers": lambda: build(pre_norm=True, reg_tokens=4, qk_norm=True, init_values=0.1),
    "oblong": lambda: build(img_size=(32, 48)),
    "four channels": lambda: build(in_chans=4),
    "dynamic": lambda: build(dynamic_img_size=True),
    "features": lambda: build(num_classes=0),
    "uneven": uneven,
    "deep head": deep_head,
    "quick gelu": lambda: build(act_layer="quick_gelu"),
}


def counted(model, sides):
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    model.requires_grad_(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, model.in_chans, *sides))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("name", MODELS)
def test_dense_and_pooled_figures_agree_with_the_counter(name):
    for method, options in (
        (None, {}),
        ("wkmedoids", {}),
        ("tome", {"position": "attention"}),
        ("powerbert", {}),
        ("kmeans", {"cls_only_last": True}),
    ):
        model = MODELS[name]()
        if options.get("cls_only_last") and model.global_pool != "token":
            continue
        if method is not None:
            patches = model.patch_embed.num_patches
            tp.pool(model, (patches * 3 // 4, patches // 2, patches // 2), method, **options)
        sides = (64, 40) if name == "dynamic" else tuple(model.patch_embed.img_size)
        ours = tp.macs(model, image_size=sides).total
        assert ours == pytest.approx(counted(model, sides), rel=1e-9)


def test_counting_leaves_the_model_alone():
    """A stem with running statistics, in training, is counted without being trained."""
    model = hybrid().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        tp.macs(model)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_cannot_be_counted_is_refused_by_name():
    class Mixing(nn.Module):
        def forward(self, x):
            return x @ x.transpose(1, 2) @ x

    class Reading(nn.Module):
        def forward(self, x):
            return x * x.sum().item()

    class Nothing(nn.Module):
        def forward(self, x):
            return x

    for layer in (Mixing(), Reading(), Nothing()):
        model = build()
        model.blocks[1].mlp = layer
        with pytest.raises(ValueError, match=f"the cost of a {type(layer).__name__} is not known"):
            tp.macs(model)
    model = build(global_pool="map")
    model.attn_pool = Nothing()
    with pytest.raises(ValueError, match="the cost of a Nothing head is not known"):
        tp.macs(model)


def test_a_model_of_one_patch():
    model = tp.build_vit(16, 16, 24, 2, 3, 5).eval()
    tp.pool(model, (1, 1))
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 5)
    assert tp.macs(model).clustering == 0
    assert sum(share for _, _, share in tp.macs(model).shares()) == pytest.approx(1)
