"""Jobs and searches that start from weights of other architectures than a plain DeiT's."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import tokenpool as tp
from pipelines.errors import UserError
from pipelines.models.initial_weights import fit, open_source
from pipelines.models.model_spec import ModelSpec
from pipelines.models.open_model import open_model
from pipelines.models.outline import outline, shaped
from tokenpool.models.architecture import describe

SPEC = ModelSpec(width=96, heads=3, depth=2, patch_size=4, image_size=32, num_classes=10)
KINDS: dict[str, dict[str, Any]] = {
    "vit_small_patch16_dinov3": {},
    "vit_small_patch16_rope_mixed_224": {},
    "vit_small_patch14_reg4_dinov2": {"init_values": 1e-5},
    "vit_base_patch16_siglip_224": {},
    "naflexvit_base_patch16_map": {"pos_embed_grid_size": (8, 8)},
}


def made(name: str, **changed: Any) -> Any:
    torch.manual_seed(0)
    size = {"patch_size": 4, "embed_dim": 96, "num_heads": 3, "depth": 2, "num_classes": 10}
    model = timm.create_model(name, **({"img_size": 32} | size | KINDS[name] | changed)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", KINDS)
def test_a_saved_model_gives_its_shape_and_its_weights(tmp_path: Path, name: str) -> None:
    model, images = made(name), torch.randn(2, 3, 32, 32)
    folder = str(tp.save(model, tmp_path / "model"))
    source = open_source(folder)
    again = shaped(SPEC, 0.1, source.architecture)
    fit(again, source, head="own")
    with torch.no_grad():
        assert torch.equal(again.eval()(images), model(images))
    assert tp.vit_spec(outline(SPEC, folder)) == tp.vit_spec(model)
    # What is trained of it is saved, and read, as what it is.
    assert describe(tp.load(tp.save(again, tmp_path / "trained"))) == describe(again)


@pytest.mark.parametrize("name", [n for n in KINDS if "siglip" not in n and "mixed" not in n])
def test_for_other_classes_and_of_another_size(tmp_path: Path, name: str) -> None:
    # A NaFlexVit keeps the positions it has, and takes images of the job's size.
    other = {"pos_embed_grid_size": (16, 16)} if "naflex" in name else {"img_size": 64}
    folder = str(tp.save(made(name, num_classes=3, **other), tmp_path / "model"))
    source = open_source(folder)
    model = shaped(SPEC, 0.0, source.architecture)
    fit(model, source)
    assert model.num_classes == 10 and tp.vit_spec(model).grid == (8, 8)
    with pytest.raises(UserError, match="knows 3 classes, the model is for 10"):
        fit(shaped(SPEC, 0.0, source.architecture), source, head="own")


def test_a_plain_deit_and_another_shape_are_none_of_its_business(tmp_path: Path) -> None:
    deit = tp.build_vit(32, 4, 96, 2, 3, 10)
    plain = open_source(str(tp.save(deit, tmp_path / "deit")))
    assert shaped(SPEC, 0.0, plain.architecture) is None
    deeper = open_source(str(tp.save(made("vit_small_patch16_dinov3", depth=3), tmp_path / "deep")))
    assert shaped(SPEC, 0.0, deeper.architecture) is None
    assert shaped(SPEC, 0.0, None) is None
    counted = tp.vit_spec(outline(SPEC, None))
    assert counted == tp.vit_spec(deit)


def test_a_training_scripts_checkpoint_of_a_rotary_model(tmp_path: Path) -> None:
    model, images = made("vit_small_patch16_dinov3"), torch.randn(2, 3, 32, 32)
    size = {"patch_size": 4, "embed_dim": 96, "num_heads": 3, "depth": 2}
    averaged = {f"module.{name}": value for name, value in model.state_dict().items()}
    raw = {f"module._orig_mod.{n}": torch.zeros_like(v) for n, v in model.state_dict().items()}
    arguments = argparse.Namespace(
        model="vit_small_patch16_dinov3", num_classes=10, img_size=32, model_kwargs=size
    )
    path = tmp_path / "model_best.pth.tar"
    torch.save(
        {"arch": arguments.model, "state_dict": raw, "state_dict_ema": averaged, "args": arguments,
         "model_args": size},
        path,
    )  # fmt: skip
    opened = open_model(str(path))
    with torch.no_grad():
        assert torch.equal(opened(images), model(images))
    missing = {n: v for n, v in averaged.items() if "blocks.1.attn" not in n}
    torch.save({"arch": arguments.model, "state_dict": missing, "model_args": size}, path)
    with pytest.raises(UserError, match=r"does not fit: it has no blocks\.1\.attn\."):
        open_model(str(path))
