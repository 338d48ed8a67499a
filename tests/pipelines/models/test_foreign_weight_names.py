"""Weights that other libraries wrote: transformers' and torchvision's ViT, by their own logits.

Neighbours of M2: the same model, by names that no training script of timm's writes.
"""

import json

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pipelines.errors import UserError
from pipelines.models.initial_weights import load_into
from pipelines.models.open_model import open_model

WIDTH = 32
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PLACES = {
    "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
}  # fmt: skip


def vit(**changes) -> VisionTransformer:
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 2}
    return VisionTransformer(**shape | {"num_classes": 10} | changes).eval()


def randomised(model):
    for value in model.parameters():
        nn.init.normal_(value, std=0.05)
    return model.eval()


def as_transformers(model: VisionTransformer, prefix: str) -> dict:
    """The weights as `ViTForImageClassification.save_pretrained` names them."""
    ours, theirs = model.state_dict(), {}
    embed = f"{prefix}embeddings."
    theirs[f"{embed}cls_token"] = ours["cls_token"]
    theirs[f"{embed}position_embeddings"] = ours["pos_embed"]
    for kind in ("weight", "bias"):
        theirs[f"{embed}patch_embeddings.projection.{kind}"] = ours[f"patch_embed.proj.{kind}"]
        theirs[f"{prefix}layernorm.{kind}"] = ours[f"norm.{kind}"]
        outer = "module." if prefix.startswith("module.") else ""
        theirs[f"{outer}classifier.{kind}"] = ours[f"head.{kind}"]
        for index in range(len(model.blocks)):
            there, here = f"{prefix}encoder.layer.{index}.", f"blocks.{index}."
            parts = ours[f"{here}attn.qkv.{kind}"].chunk(3)
            for name, value in zip(("query", "key", "value"), parts, strict=True):
                theirs[f"{there}attention.attention.{name}.{kind}"] = value.clone()
            for theirs_, ours_ in PLACES.items():
                theirs[f"{there}{theirs_}.{kind}"] = ours[f"{here}{ours_}.{kind}"]
    return theirs


@pytest.mark.parametrize("prefix", ["vit.", "module.vit.", ""])
def test_transformers_vit_gives_its_own_logits(tmp_path, prefix):
    source = randomised(vit())
    torch.save(as_transformers(source, prefix), tmp_path / "pytorch_model.bin")
    loaded = load_into(vit(), str(tmp_path / "pytorch_model.bin"), head="own")
    assert torch.allclose(loaded(IMAGES), source(IMAGES), atol=1e-6)


def test_torchvisions_vit_gives_its_own_logits(tmp_path):
    source = randomised(
        torchvision.models.VisionTransformer(32, 8, 2, 2, WIDTH, 4 * WIDTH, num_classes=10)
    )
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    loaded = load_into(vit(), str(tmp_path / "vit.pth"), head="own")
    assert torch.allclose(loaded(IMAGES), source(IMAGES), atol=1e-5)


def folder(tmp_path, source, **config):
    said = {"architectures": ["ViTForImageClassification"], "num_attention_heads": 2,
            "layer_norm_eps": 1e-12, "hidden_act": "gelu"}  # fmt: skip
    images = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_resize": True, "resample": 2}
    save_file(as_transformers(source, "vit."), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(said | config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    return str(tmp_path)


def test_a_folder_of_transformers_says_colours_interpolation_and_classes(tmp_path):
    names = {str(index): f"class {index}" for index in range(10)}
    source = folder(tmp_path, randomised(vit()), id2label=names)
    config = timm.data.resolve_model_data_config(load_into(vit(), source))
    assert config["mean"] == config["std"] == (0.5,) * 3
    assert (config["interpolation"], config["crop_mode"]) == ("bilinear", "squash")
    assert load_into(vit(), source).pretrained_cfg["label_names"] == list(names.values())


def test_its_number_of_heads_is_compared(tmp_path):
    source = folder(tmp_path, randomised(vit()), num_attention_heads=4)
    with pytest.raises(UserError, match="heads 4 there and 2"):
        load_into(vit(), source)


def test_it_is_opened_by_the_name_of_its_architecture_and_asked_for_without(tmp_path):
    source = randomised(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10))
    path = folder(tmp_path, source, num_attention_heads=3)
    opened = open_model(path, "vit_tiny_patch16_224")
    assert torch.allclose(opened(IMAGES), source(IMAGES), atol=1e-5)
    with pytest.raises(UserError, match="give --arch"):
        open_model(path)


@pytest.mark.parametrize("key", ["beit.embeddings.", "vision_model.embeddings."])
def test_what_only_looks_alike_is_refused(tmp_path, key):
    """BEiT has relative positions, CLIP a norm before its blocks: neither is this ViT."""
    torch.save(as_transformers(vit(), key.removesuffix("embeddings.")), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"does not fit|no head"):
        load_into(vit(), str(tmp_path / "x.pth"), head="own")
