"""Weights: those that belong give the same logits, those that do not are refused by name.

M1 of the field: a checkpoint of another architecture was taken as if it fitted.
"""

import logging
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import ResPostBlock, VisionTransformer

import tokenpool as tp
from pipelines.errors import UserError
from pipelines.models.initial_weights import load_into, open_source

SMALL = dict(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=5)


def vit(image_size=16, patch_size=4, width=16, num_classes=5):
    torch.manual_seed(image_size + num_classes)
    return tp.build_vit(image_size, patch_size, width, 2, 2, num_classes)


def other(**changes):
    """A ViT of random weights, none of which is at its initial value."""
    torch.manual_seed(0)
    model = VisionTransformer(**{**SMALL, **changes}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("kind", ["folder", "safetensors", "pth", "wrapped"])
def test_the_same_shape_gives_the_same_model(tmp_path, images, kind):
    source = vit().eval()
    path = tmp_path / {"folder": "m", "safetensors": "m.safetensors"}.get(kind, "m.pth")
    if kind == "folder":
        tp.save(source, path)
    elif kind == "safetensors":
        save_file(source.state_dict(), path)
    else:
        state = source.state_dict()
        torch.save({"model": state} if kind == "wrapped" else state, path)
    target = load_into(vit(num_classes=5), str(path)).eval()
    assert torch.equal(target(images), source(images))


def test_another_class_count_keeps_the_body_and_the_fresh_head(tmp_path, images):
    source, target = vit().eval(), vit(num_classes=7).eval()
    head = target.head.weight.clone()
    tp.save(source, tmp_path / "m")
    load_into(target, str(tmp_path / "m"))
    assert torch.equal(target.head.weight, head)
    assert torch.equal(target.forward_features(images), source.forward_features(images))
    with pytest.raises(UserError, match="knows 5 classes, the model is for 7"):
        load_into(vit(num_classes=7), str(tmp_path / "m"), head="own")


def test_positions_are_resampled_for_another_image_size(tmp_path):
    tp.save(vit(image_size=16), tmp_path / "m")
    target = load_into(vit(image_size=32), str(tmp_path / "m"))
    assert target.pos_embed.shape == (1, 65, 16)
    small, large = vit(image_size=16).pos_embed[:, 1:], target.pos_embed[:, 1:]
    # A smooth enlargement keeps the mean.
    torch.testing.assert_close(small.mean(1), large.mean(1), atol=5e-3, rtol=0)


def test_what_does_not_fit_is_named(tmp_path):
    tp.save(vit(width=16), tmp_path / "m")
    with pytest.raises(UserError, match=r"does not fit: .* \(.*\) there and"):
        load_into(vit(width=24), str(tmp_path / "m"))
    with pytest.raises(UserError, match="no weights at"):
        open_source("no_such_model_xyz")
    (tmp_path / "m.txt").write_text("x")
    with pytest.raises(UserError, match="weights are read from"):
        open_source(str(tmp_path / "m.txt"))


# The first three are the field's; the rest are neighbours: each has keys of its own, or shapes.
SHOWN = [
    (dict(depth=4), "it has blocks.2.attn.proj.bias, which the model lacks"),
    (dict(init_values=0.5), "it has blocks.0.ls1.gamma"),
    (dict(qk_norm=True), "it has blocks.0.attn.k_norm.bias"),
    (dict(depth=1), "it has no blocks.1.attn.proj.bias"),
    (dict(scale_attn_norm=True), "it has blocks.0.attn.norm.bias"),
    (dict(scale_mlp_norm=True), "it has blocks.0.mlp.norm.bias"),
    (dict(global_pool="map"), "it has attn_pool"),
    (dict(global_pool="avg"), "it has fc_norm.bias, which the model lacks and it has no norm.bias"),
    (dict(reg_tokens=4, no_embed_class=True), "it has reg_token"),
    (dict(pre_norm=True), "it has norm_pre.bias"),
    (dict(qkv_bias=False), "it has no blocks.0.attn.qkv.bias"),
    (dict(class_token=False, global_pool="avg", fc_norm=False), "it has no cls_token"),
    (dict(in_chans=1), "patch_embed.proj.weight is"),
    (dict(mlp_ratio=3), "mlp.fc1.* is"),
]


@pytest.mark.parametrize("kind", ["plain", "saved"])
@pytest.mark.parametrize(("changes", "said"), SHOWN)
def test_an_architecture_that_shows_in_the_weights_is_refused(tmp_path, kind, changes, said):
    path = tmp_path / ("m" if kind == "saved" else "m.safetensors")
    if kind == "saved":
        tp.save(other(**changes), path)
    else:
        save_file(other(**changes).state_dict(), path)
    with pytest.raises(UserError, match=said) as caught:
        load_into(vit(), str(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


# What shapes do not show: the field's heads, and neighbours whose weights fit to the last key.
HIDDEN = [
    (dict(num_heads=4), "heads 4 there and 2 in the model"),
    (dict(act_layer="quick_gelu"), "activation quick_gelu there and GELU in the model"),
    (dict(act_layer="relu"), "activation ReLU there"),
    (dict(norm_layer=lambda *a, **k: torch.nn.LayerNorm(*a, **{"eps": 1e-2, **k})), "epsilon 0.01"),
    (dict(global_pool="avg", fc_norm=False), "pooling of the head avg there and token"),
    (dict(global_pool="max", fc_norm=False), "pooling of the head max there and token"),
]


@pytest.mark.parametrize(("changes", "said"), HIDDEN)
def test_what_does_not_show_in_shapes_is_read_from_a_saved_model(tmp_path, changes, said, images):
    source = other(**changes)
    target = vit().eval()
    target.load_state_dict(source.state_dict())
    assert not torch.allclose(target(images), source(images), atol=1e-3)  # it matters
    tp.save(source, tmp_path / "m")
    with pytest.raises(UserError, match=said):
        load_into(vit(), str(tmp_path / "m"))


def test_what_a_plain_file_does_not_say_is_said_to_be_assumed(tmp_path, caplog):
    save_file(other(num_heads=4).state_dict(), tmp_path / "m.safetensors")
    with caplog.at_level(logging.WARNING):
        load_into(vit(), str(tmp_path / "m.safetensors"))
    assert "taken as heads 2, activation GELU, norm epsilon 1e-06" in caplog.text
    # A script's own words are believed: argparse's, Lightning's hyper-parameters, a hub's config.
    for container in ({"args": {"num_heads": 4}}, {"hyper_parameters": {"heads": 4}}):
        torch.save(
            {"state_dict": other(num_heads=4).state_dict(), **container}, tmp_path / "m.ckpt"
        )
        with pytest.raises(UserError, match="heads 4 there and 2 in the model"):
            load_into(vit(), str(tmp_path / "m.ckpt"))


def test_a_file_that_names_a_timm_model_is_held_to_it(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=5)
    torch.save(
        {"arch": "vit_tiny_patch16_224", "state_dict": model.state_dict()}, tmp_path / "m.pth"
    )
    fits = tp.build_vit(32, 16, 192, 1, 3, 5)
    load_into(fits, str(tmp_path / "m.pth"))
    assert fits.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)  # that model's, not ImageNet's
    with pytest.raises(UserError, match="heads 3 there and 6 in the model"):
        load_into(tp.build_vit(32, 16, 192, 1, 6, 5), str(tmp_path / "m.pth"))


def test_blocks_of_another_kind_cannot_be_saved_nor_mistaken(tmp_path):
    # Its weights have the very names and shapes of a plain block's.
    strange = VisionTransformer(**SMALL, block_fn=ResPostBlock)
    with pytest.raises(ValueError, match="ResPostBlock"):
        tp.save(strange, tmp_path / "m")


def test_positions_in_other_forms_give_the_same_logits(tmp_path, images):
    source = other()
    state = source.state_dict()
    expected = source(images)
    state_flat = {**state, "pos_embed": state["pos_embed"][0]}  # [positions, width]
    save_file({k: v.contiguous() for k, v in state_flat.items()}, tmp_path / "flat.safetensors")
    assert torch.allclose(
        load_into(vit(), str(tmp_path / "flat.safetensors")).eval()(images), expected
    )
    # A position of the class token, in a model that keeps none: the same sum.
    save_file(state, tmp_path / "with.safetensors")
    without = VisionTransformer(**SMALL, no_embed_class=True).eval()
    got = load_into(without, str(tmp_path / "with.safetensors")).eval()(images)
    assert torch.allclose(got, expected, atol=1e-5)
    # And the other way round.
    source = other(no_embed_class=True)
    for shape in ((1, 16, 16), (16, 16), (1, 4, 4, 16)):
        state = {**source.state_dict()}
        state["pos_embed"] = state["pos_embed"].reshape(shape)
        save_file(state, tmp_path / "without.safetensors")
        got = load_into(vit(), str(tmp_path / "without.safetensors")).eval()(images)
        assert torch.allclose(got, source(images), atol=1e-5)


def test_positions_of_a_grid_that_is_not_square(tmp_path):
    source = other(img_size=(8, 32))  # 2 x 8 patches: as many as 4 x 4
    tp.save(source, tmp_path / "m")
    same = load_into(
        VisionTransformer(**{**SMALL, "img_size": (8, 32)}), str(tmp_path / "m")
    ).eval()
    x = torch.randn(2, 3, 8, 32)
    assert torch.equal(same(x), source(x))
    square = load_into(vit(), str(tmp_path / "m"))
    assert not torch.equal(square.pos_embed, source.pos_embed)  # resampled, not re-read
    state = {**source.state_dict(), "pos_embed": torch.zeros(1, 24, 16)}
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match="24 positions lie on no square grid"):
        load_into(vit(), str(tmp_path / "odd.safetensors"))


def test_pretraining_parts_are_left_out_and_said(tmp_path, images, caplog):
    source = other()
    state = source.state_dict() | {
        "mask_token": torch.zeros(1, 1, 16),
        "decoder_embed.weight": torch.zeros(8, 16),
    }
    torch.save({"model": state}, tmp_path / "mae.pth")
    with caplog.at_level(logging.WARNING):
        target = load_into(vit(), str(tmp_path / "mae.pth")).eval()
    assert torch.equal(target(images), source(images))
    assert "mask_token" in caplog.text and "decoder_embed" in caplog.text


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    state = other().state_dict()
    state["norm.weight"] = torch.full((16,), float("nan"))
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=r"norm\.weight holds values that are not finite"):
        load_into(vit(), str(tmp_path / "m.safetensors"))


class Payload:
    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


@pytest.mark.parametrize("beside", [False, True])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, beside):
    path = tmp_path / "evil.pth"
    content = {"model": Payload()} | ({"state_dict": vit().state_dict()} if beside else {})
    if beside:
        torch.save(content, path)
    else:
        with path.open("wb") as file:
            pickle.dump(content, file)
    with pytest.raises(UserError, match="cannot be read as weights alone") as caught:
        open_source(str(path))
    assert not Payload.ran and "\x1b" not in str(caught.value) and "\n" not in str(caught.value)
