"""Saved models: the same bits back, whole or not at all, and nothing executed on the way."""

import json
import os

import pytest
import timm
import torch
from torch import nn

import tokenpool as tp
from tokenpool.models import storage

SCHEDULE = tp.Schedule((13, 9, 9, 5))


def small(**options):
    return tp.build_vit(16, 4, 24, 4, 3, 5, **options).eval()


@pytest.mark.parametrize("method", tp.METHODS)
def test_a_pooled_model_comes_back_to_the_last_bit(tmp_path, method):
    model = tp.pool(small(), SCHEDULE, method, iterations=3, proportional_attention=True)
    again = tp.load(tp.save(model, tmp_path / "model"))
    x = torch.randn(2, 3, 16, 16)
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    assert torch.equal(again(x), expected)
    assert tp.pooling_of(again)[:2] == (SCHEDULE, method)
    assert tp.pooling_of(again).options == tp.pooling_of(model).options


def test_a_plain_model_comes_back_plain(tmp_path):
    again = tp.load(tp.save(small(drop_path=0.1), tmp_path / "model"))
    assert tp.pooling_of(again) is None
    assert again.blocks[3].drop_path1.drop_prob == pytest.approx(0.1)
    assert all(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deit_tiny_distilled_patch16_224", {}),
        ("deit3_small_patch16_224", {}),
        ("vit_tiny_patch16_224", {"dynamic_img_size": True, "drop_rate": 0.2}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 112}),
        ("vit_medium_patch16_gap_240", {}),
        ("vit_base_patch16_clip_224", {}),
        ("vit_base_patch16_siglip_224", {}),
    ],
)
def test_real_timm_models_come_back(tmp_path, name, options):
    model = timm.create_model(name, num_classes=7, depth=2, **options)
    again = tp.load(tp.save(model.eval(), tmp_path / "model"))
    x = torch.randn(1, 3, *model.patch_embed.img_size)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_the_dtype_is_kept(tmp_path):
    again = tp.load(tp.save(small().bfloat16(), tmp_path / "model"))
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}


def test_there_is_no_pickle_in_it(tmp_path):
    path = tp.save(small(), tmp_path / "model")
    assert sorted(file.name for file in path.iterdir()) == ["model.json", "model.safetensors"]
    assert json.loads((path / "model.json").read_text())["format"] == "tokenpool"


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path):
    first, second = small(), small()
    tp.save(first, tmp_path / "model")
    tp.save(second, tmp_path / "model")
    again = tp.load(tmp_path / "model")
    assert torch.equal(again.cls_token, second.cls_token)
    assert os.listdir(tmp_path) == ["model"]


def test_an_interrupted_save_leaves_what_was_there(tmp_path, monkeypatch):
    first = small()
    tp.save(first, tmp_path / "model")

    def fail(path):
        raise OSError("disk full")

    monkeypatch.setattr(storage, "_sync", fail)
    with pytest.raises(OSError, match="disk full"):
        tp.save(small(), tmp_path / "model")
    monkeypatch.undo()
    assert torch.equal(tp.load(tmp_path / "model").cls_token, first.cls_token)
    assert os.listdir(tmp_path) == ["model"]


def test_what_is_not_a_saved_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no saved model at"):
        tp.load(tmp_path / "nothing")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="exists and is not a saved model"):
        tp.save(small(), tmp_path / "mine")
    path = tp.save(small(), tmp_path / "model")
    weights = path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match="missing or altered"):
        tp.load(path)
    header = path / "model.json"
    changed = json.loads(header.read_text())
    header.write_text(json.dumps({**changed, "version": 99}))
    with pytest.raises(ValueError, match="format version 99"):
        tp.load(path)
    header.write_text("{}")
    with pytest.raises(ValueError, match="does not describe a saved model"):
        tp.load(path)
    header.write_text("not json")
    with pytest.raises(ValueError, match="there is no saved model at"):
        tp.load(path)


def test_a_header_that_does_not_fit_is_one_line(tmp_path):
    path = tp.save(small(), tmp_path / "model")
    header = json.loads((path / "model.json").read_text())
    for change in ({"depth": 5}, {"embed_dim": 25}, {"unheard_of": 1}, {"class": "Net"}):
        changed = {**header, "architecture": {**header["architecture"], **change}}
        (path / "model.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="does not fit its weights"):
            tp.load(path)


def test_a_model_that_could_not_be_rebuilt_is_refused(tmp_path):
    model = small()
    model.head = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 5))
    with pytest.raises(ValueError, match="cannot be saved"):
        tp.save(model, tmp_path / "model")
    model = small()
    model.blocks[2].norm1 = nn.LayerNorm(24, eps=0.3)
    with pytest.raises(ValueError, match=r"blocks\.2\.norm1"):
        tp.save(model, tmp_path / "model")
    assert os.listdir(tmp_path) == []
