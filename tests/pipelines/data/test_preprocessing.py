"""Images as a model wants them: pixel for pixel what timm's own evaluation makes of the same files.

M9 of the field: a saved model's normalisation, crop and interpolation were lost.
"""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import tokenpool as tp
from pipelines.data.loader import make_loader
from pipelines.data.manifest import load_manifest
from pipelines.data.preprocessing import EvalCut, own_preprocessing, preprocessing_of
from pipelines.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def vit(size=32, **config):
    model = tp.build_vit(size, 8, 32, 1, 2, 3)
    if config:
        model.pretrained_cfg = config
    return model


def originals(source: Path, prepared: Path, split: str) -> list[Image.Image]:
    """The files that a split's images are from, in its order."""
    files = {hashlib.sha1(p.read_bytes()).hexdigest(): p for p in source.rglob("*.jpg")}
    rows = [r for r in pq.read_table(prepared / "index.parquet").to_pylist() if r["split"] == split]
    rows.sort(key=lambda row: row["position"])
    return [Image.open(files[row["source_sha1"]]).convert("RGB") for row in rows]


def shown(prepared: Path, model) -> torch.Tensor:
    """What our loader and normalisation show the model."""
    view = preprocessing_of(model, load_manifest(prepared))
    loader = make_loader(
        prepared,
        "val",
        batch_size=5,
        train=False,
        image_size=view.size[0],
        geometry=view.cut or "auto",
    )
    batches = [view(images) for images, _ in loader]
    loader.close()
    return torch.cat(batches)


# The field's case is a mean and std alone. Neighbours: every other field that timm's evaluation
# reads, alone and together, and sizes that are no square.
CONFIGS = [
    dict(mean=MEAN, std=STD),
    dict(mean=MEAN, std=STD, crop_pct=1.0, interpolation="bicubic"),
    dict(
        mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.9, interpolation="bicubic", crop_mode="center"
    ),
    dict(mean=MEAN, std=STD, crop_pct=0.95, interpolation="bicubic", crop_mode="squash"),
    dict(mean=MEAN, std=STD, crop_pct=1.0, interpolation="lanczos", crop_mode="border"),
    dict(mean=MEAN, std=STD, crop_pct=0.7, interpolation="nearest"),
    dict(mean=MEAN, std=STD, crop_pct=0.77, interpolation="bilinear"),
    dict(mean=(0.0,), std=(1.0,), crop_pct=0.9, interpolation="bicubic"),
    dict(crop_pct=0.9, interpolation="bicubic", mean=MEAN, std=STD, size=(24, 48)),
    dict(crop_pct=0.9, interpolation="bilinear", mean=MEAN, std=STD, size=(48, 24)),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_pixels_are_those_of_timms_evaluation(photos, prepared_photos, tmp_path, config):
    config = dict(config)
    size = config.pop("size", 32)
    saved = tp.save(vit(size, **config), tmp_path / "m")
    model = tp.load(saved)  # the header carries it
    resolved = resolve_model_data_config(model)
    if len(config["mean"]) == 1:
        resolved |= {"mean": config["mean"] * 3, "std": config["std"] * 3}
    transform = create_transform(**resolved, is_training=False)
    expected = torch.stack([transform(x) for x in originals(photos, prepared_photos, "val")])
    assert resolved["input_size"] == (3, *model.patch_embed.img_size)
    assert torch.allclose(shown(prepared_photos, model), expected, atol=2e-6)


def test_what_a_model_does_not_say_is_the_datas_and_said(prepared_photos, digits):
    manifest = load_manifest(prepared_photos)
    view = preprocessing_of(vit(), manifest)
    assert (view.mean, view.std, view.cut) == (manifest.mean, manifest.std, None)
    assert "normalisation is not known: assumed the data's own" in str(view)
    assert "\n" not in str(view)
    # Images that are stored as the model wants them are not cut by a mere default.
    stored = preprocessing_of(vit(mean=MEAN, std=STD), load_manifest(digits))
    assert stored.mean == MEAN and stored.cut is None and "crop is not known" in str(stored)
    assert preprocessing_of(vit(mean=MEAN, std=STD, crop_pct=0.9), load_manifest(digits)).cut


def test_what_models_trained_here_say_is_what_the_loader_shows(prepared_photos, digits, tmp_path):
    for folder, size in ((prepared_photos, 32), (prepared_photos, 24), (digits, 32), (digits, 16)):
        manifest = load_manifest(folder)
        model = vit(size)
        plain = shown(folder, model)
        model.pretrained_cfg = own_preprocessing(manifest, size)
        again = tp.load(tp.save(model, tmp_path / "m"))
        assert again.pretrained_cfg["crop_pct"] == own_preprocessing(manifest, size)["crop_pct"]
        view = preprocessing_of(again, manifest)
        assert view.assumed == ""
        # Pillow's decoder for FFCV's: some levels of 255 in saturated JPEGs, no other place.
        difference = (shown(folder, again) - plain).abs() * 255 * min(manifest.std)
        assert difference.mean() < (2 if folder == prepared_photos else 0.2)


def test_one_channel_sees_pillows_grey(digits):
    model = tp.build_vit(32, 8, 32, 1, 2, 10, in_chans=1)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    got = preprocessing_of(model, load_manifest(digits))(pixels)
    assert got.shape == (2, 1, 32, 32)
    manifest = load_manifest(digits)
    grey = [Image.fromarray(x.permute(1, 2, 0).numpy()).convert("L") for x in pixels]
    expected = torch.from_numpy(np.stack(grey)).float().unsqueeze(1) / 255
    expected = (expected - manifest.mean[0]) / manifest.std[0]
    assert torch.allclose(got, expected, atol=1.01 / 255 / manifest.std[0])  # a level of rounding


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (tp.build_vit(32, 8, 32, 1, 2, 10, in_chans=4), "images of 4 channels"),
        (vit(mean=(0.5, 0.5), std=(0.5, 0.5)), "3 channels and a mean and std of 2"),
        (vit(mean=MEAN, std=STD, crop_pct=-1), "crop_pct is -1"),
        (vit(mean=MEAN, std=STD, crop_mode="middle"), "crop_mode 'middle'"),
        (vit(mean=MEAN, std=STD, interpolation="sinc"), "interpolation 'sinc'"),
    ],
)
def test_what_makes_no_sense_is_refused(prepared_photos, model, said):
    with pytest.raises(UserError, match=said):
        preprocessing_of(model, load_manifest(prepared_photos))


def test_a_models_crop_is_not_for_training(prepared_photos):
    with pytest.raises(UserError, match="is for evaluation"):
        make_loader(
            prepared_photos, "train", batch_size=2, train=True, geometry=EvalCut((32, 32), 0.9)
        )
