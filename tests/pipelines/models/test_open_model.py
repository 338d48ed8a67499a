"""Models by folder, file and name: whole, in one place, or refused in one line."""

import argparse
import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

import tokenpool as tp
from pipelines.data.manifest import load_manifest
from pipelines.errors import UserError
from pipelines.models.initial_weights import load_into
from pipelines.models.normalization import adopt
from pipelines.models.open_model import open_model
from pipelines.search.loaded_base import save_loaded
from tokenpool.patches import patches_of

SMALL = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=10)


def timms(name="vit_tiny_patch16_224", **changes):
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SMALL, **changes}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def x(side=32):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


# A hub's folder: of a plain model, and of neighbours whose forms of head and position differ.
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"class_token": False, "global_pool": "avg"},
        {"no_embed_class": True, "reg_tokens": 2},
        {"img_size": 48},
        {"act_layer": "quick_gelu"},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["folder", "local-dir:"])
def test_what_timm_saves_for_a_hub(tmp_path, changes, form):
    model = timms(**changes)
    side = changes.get("img_size", 32)
    save_for_hf(model, tmp_path / "hub", model_args={**SMALL, **changes}, safe_serialization=True)
    again = open_model(f"{'' if form == 'folder' else form}{tmp_path / 'hub'}")
    assert torch.equal(again(x(side)), model(x(side)))
    assert tuple(again.pretrained_cfg["mean"]) == (0.5, 0.5, 0.5)
    if changes in ({}, {"img_size": 48}):
        target = tp.build_vit(32, 8, 24, 2, 2, 10).eval()
        load_into(target, f"local-dir:{tmp_path / 'hub'}")
        if not changes:
            assert torch.equal(target(x()), model(x()))
    else:
        with pytest.raises(UserError, match="does not fit") as caught:
            load_into(tp.build_vit(32, 8, 24, 2, 2, 10), f"local-dir:{tmp_path / 'hub'}")
        assert "\n" not in str(caught.value)


def test_timms_checkpoints_name_their_model(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10, depth=2).eval()
    arguments = argparse.Namespace(model="vit_tiny_patch16_224", img_size=64, mean=[0.1] * 3,
                                   std=None, crop_pct=0.8, model_kwargs={"depth": 2})  # fmt: skip
    torch.save(
        {"arch": "vit_tiny_patch16_224", "state_dict": model.state_dict(), "args": arguments},
        tmp_path / "last.pth.tar",
    )
    again = open_model(str(tmp_path / "last.pth.tar"))
    assert torch.equal(again(x(64)), model(x(64)))
    config = again.pretrained_cfg
    # The script's arguments over the architecture's defaults.
    assert (config["mean"], config["std"], config["crop_pct"]) == ((0.1,) * 3, (0.5,) * 3, 0.8)
    # Size and classes are seen from the weights where nothing says them.
    three = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=3)
    torch.save({"state_dict": three.state_dict()}, tmp_path / "plain.pth")
    plain = open_model(str(tmp_path / "plain.pth"), "vit_tiny_patch16_224")
    assert plain.num_classes == 3 and plain.patch_embed.img_size == (64, 64)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: "nowhere", "neither a folder with a saved model nor"),
        (lambda folder: "local-dir:" + str(folder / "nowhere"), "no weights for local-dir:"),
        (lambda folder: str(folder), "there is no saved model at .*, and no file of weights"),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path, make, said):
    with pytest.raises(UserError, match=said) as caught:
        open_model(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_plain_weights_without_a_name_ask_for_it(tmp_path):
    torch.save({"state_dict": timms().state_dict()}, tmp_path / "m.pth")
    with pytest.raises(UserError, match="does not say which model it is of: give --arch"):
        open_model(str(tmp_path / "m.pth"))
    with pytest.raises(UserError, match="'vit_nothing' is no timm model: give --arch"):
        open_model(str(tmp_path / "m.pth"), "vit_nothing")
    with pytest.raises(UserError, match="does not fit"):
        open_model(str(tmp_path / "m.pth"), "vit_small_patch16_224")


def job(storage, data):
    from pipelines.config import DataConfig, TrainConfig, WorkersConfig
    from pipelines.models.model_spec import ModelSpec
    from pipelines.train.spec import TrainJob

    return TrainJob(
        job_id="base",
        storage=storage,
        data=DataConfig(path=data, image_size=32),
        model=ModelSpec(width=24, heads=2, depth=2, patch_size=8, image_size=32, num_classes=10),
        train=TrainConfig(epochs=10),
        workers=WorkersConfig(),
    )


def test_a_checkpoint_of_other_colours_and_order_becomes_one_of_this_data(tmp_path, digits):
    manifest = load_manifest(digits)
    model = timms()
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    names = [manifest.classes[i] for i in order]
    model.pretrained_cfg = {"mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3), "label_names": names,
                            "num_classes": 10}  # fmt: skip
    tp.save(model, tmp_path / "mine")
    loaded = tp.load(save_loaded(job(tmp_path, digits), str(tmp_path / "mine")))
    pixels = torch.rand(4, 3, 32, 32)
    theirs, ours = (
        (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
        for mean, std in (((0.4, 0.5, 0.6), (0.1, 0.2, 0.3)), (manifest.mean, manifest.std))
    )
    expected, found = model(theirs), loaded(ours)
    for place, name in enumerate(names):
        ours_at = manifest.classes.index(name)
        torch.testing.assert_close(found[:, ours_at], expected[:, place], atol=1e-3, rtol=1e-3)
    assert loaded.pretrained_cfg["mean"] == manifest.mean
    assert loaded.pretrained_cfg["label_names"] == manifest.classes
    # Of other classes: refused, in one line.
    model.pretrained_cfg["label_names"] = list("abcdefghij")
    tp.save(model, tmp_path / "letters")
    with pytest.raises(UserError, match="class '0' is none of the model's"):
        save_loaded(job(tmp_path, digits), str(tmp_path / "letters"))


def test_a_plain_checkpoint_for_other_classes_is_refused_not_given_a_fresh_head(tmp_path, digits):
    torch.save({"state_dict": timms(num_classes=7).state_dict()}, tmp_path / "seven.pth")
    torch.save({"state_dict": timms(num_classes=0).state_dict()}, tmp_path / "none.pth")
    with pytest.raises(UserError, match="knows 7 classes, the model is for 10"):
        save_loaded(job(tmp_path, digits), str(tmp_path / "seven.pth"))
    with pytest.raises(UserError, match="has no head for classes"):
        save_loaded(job(tmp_path, digits), str(tmp_path / "none.pth"))


def test_what_is_assumed_of_a_checkpoint_is_said(tmp_path, digits):
    notes = adopt(timms(), load_manifest(digits), head=True)
    text = "\n".join(notes)
    assert "made for images normalised by mean (0.5, 0.5, 0.5)" in text
    assert "its own cut of images (crop_pct 0.9, crop_mode center, interpolation bicubic)" in text
    assert "does not say what its classes are called" in text
    bare = tp.build_vit(32, 8, 24, 2, 2, 10)
    assert (
        "does not say how its images were normalised"
        in adopt(bare, load_manifest(digits), head=True)[0]
    )
    header = json.loads((tp.save(bare, tmp_path / "m") / "model.json").read_text())
    assert header["classes"] == load_manifest(digits).classes


# What timm's train.py was started with: a name, and what the model was changed by.
CHANGED = {
    "vit_tiny_patch16_224": [
        {},
        {"no_embed_class": True},
        {"global_pool": "avg", "class_token": False},
        {"global_pool": "avg", "fc_norm": False},
        {"in_chans": 1},
        {"img_size": (32, 48)},
        {"img_size": (32, 48), "patch_size": (8, 16)},
        {"dynamic_img_size": True},
    ],
    "vit_base_patch16_siglip_224": [{}],
    "vit_base_patch16_siglip_gap_224": [{}],
    "vit_base_patch16_clip_quickgelu_224": [{}],
    "vit_small_patch14_reg4_dinov2": [{}],
    "vit_so150m_patch16_reg4_map_256": [{}],
    "deit_tiny_distilled_patch16_224": [{}],
    "vit_small_patch16_dinov3": [{}, {"img_size": (32, 48)}],
    "naflexvit_base_patch16_map": [{"img_size": 32, "pos_embed_grid_size": (4, 4)}],
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [(name, changes) for name, cases in CHANGED.items() for changes in cases],
    ids=lambda value: value if isinstance(value, str) else str(value),
)
def test_checkpoints_and_shards_of_a_model_that_was_changed(tmp_path, name, changes):
    """What the script was told with --model-kwargs is the model, size and positions included."""
    kwargs = {k: v for k, v in (SMALL | changes).items() if k != "num_classes"}
    model = timms(name, **changes)
    channels = changes.get("in_chans", 3)
    size = changes.get("img_size", 32)
    size = size if isinstance(size, tuple) else (size, size)
    images = torch.randn(2, channels, *size)
    state = model.state_dict()
    arguments = argparse.Namespace(
        model=name, num_classes=10, img_size=None, in_chans=None, gp=None, model_kwargs=kwargs
    )
    torch.save(
        {"arch": name, "args": arguments,
         "state_dict": {key: torch.zeros_like(value) for key, value in state.items()},
         "state_dict_ema": {f"module._orig_mod.{key}": value for key, value in state.items()}},
        tmp_path / "last.pth.tar",
    )  # fmt: skip
    hub = tmp_path / "hub"
    save_for_hf(model, hub, model_args=kwargs)
    half = len(state) // 2
    parts = {"a.safetensors": list(state)[:half], "b.safetensors": list(state)[half:]}
    (tmp_path / "shards").mkdir()
    for file, keys in parts.items():
        save_file({key: state[key] for key in keys}, tmp_path / "shards" / file)
    listed = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (tmp_path / "shards" / "model.safetensors.index.json").write_text(json.dumps(listed))
    (tmp_path / "shards" / "config.json").write_text((hub / "config.json").read_text())
    expected = model(images)
    for source in ("last.pth.tar", "hub", "shards"):
        again = open_model(str(tmp_path / source))
        assert patches_of(again).img_size == size, source
        torch.testing.assert_close(again(images), expected)
        pooled = tp.pool(again, (12, 6))(images)
        saved = tp.save(again, tmp_path / "saved")
        torch.testing.assert_close(tp.load(saved)(images), pooled)
    # timm itself would take one of the shards, and for some models not even say so.
    with pytest.raises(UserError, match="in shards, of which timm would take one: give the folder"):
        open_model(f"local-dir:{tmp_path / 'shards'}")


def test_positions_that_may_lie_in_two_ways_are_not_guessed(tmp_path):
    """25 of them: 4x6 patches and a class token, or 5x5 patches."""
    save_file(timms(img_size=(32, 48)).state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="its 25 positions are 5x5 patches' and none the class"):
        load_into(tp.build_vit(32, 8, 24, 2, 2, 10), str(tmp_path / "m.safetensors"))
    wide = timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), num_classes=10)
    save_file(wide.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="its 25 positions are of no square image") as caught:
        open_model(str(tmp_path / "w.safetensors"), "vit_tiny_patch16_224")
    assert "\n" not in str(caught.value)
