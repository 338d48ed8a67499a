"""The dense top-1 that squeeze prints is the model's own: timm's evaluation of the same files."""

import hashlib
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
import typer_runs
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import tokenpool as tp
from pipelines.commands.squeeze_command import squeeze
from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare
from pipelines.errors import UserError
from pipelines.search.scorer import Scorer

CLASSES = ("ant", "bee", "cat", "dog")


def picture(label: int, rng: np.random.Generator) -> bytes:
    """A class' pattern under noise, at a size and shape of its own."""
    pattern = np.random.default_rng(label).integers(0, 256, (4, 4, 3))
    noisy = np.clip(0.45 * pattern + 0.55 * rng.integers(0, 256, (4, 4, 3)), 0, 255)
    size = tuple(int(side) for side in rng.integers(40, 90, 2))
    image = Image.fromarray(noisy.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for split, count in (("train", 150), ("val", 2)):
            folder = root / "source" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.jpg").write_bytes(picture(label, rng))
    prepare(str(root / "source"), root / "data", PrepareOptions(minival=0.5, workers=1))
    return root


def split_of(root, split):
    files = {hashlib.sha1(p.read_bytes()).hexdigest(): p for p in root.rglob("*.jpg")}
    rows = pq.read_table(root / "data" / "index.parquet").to_pylist()
    rows = sorted((r for r in rows if r["split"] == split), key=lambda row: row["position"])
    images = [Image.open(files[row["source_sha1"]]).convert("RGB") for row in rows]
    return images, torch.tensor([row["label"] for row in rows])


@pytest.fixture(scope="module")
def model(pictures):
    """A random ViT with a head fitted to what its own preprocessing shows it."""
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=2,
        num_classes=4,
        pretrained_cfg_overlay={"mean": (0.2, 0.7, 0.5), "std": (0.1, 0.4, 0.2), "crop_pct": 0.6,
                                "interpolation": "bicubic", "input_size": (3, 32, 32)},
    ).eval()  # fmt: skip
    images, labels = split_of(pictures, "train")
    features = forward(vit, images, vit.forward_features)[:, 0]
    wanted = torch.nn.functional.one_hot(labels, 4).float()
    ones = torch.ones(len(features), 1)
    solved = torch.linalg.lstsq(torch.cat([features, ones], 1), wanted).solution
    with torch.no_grad():
        vit.head.weight.copy_(10 * solved[:-1].T)
        vit.head.bias.copy_(10 * solved[-1])
    return vit


@torch.no_grad()
def forward(vit, images, through, **changed):
    transform = create_transform(**resolve_model_data_config(vit) | changed, is_training=False)
    return through(torch.stack([transform(image) for image in images]))


def top1(vit, pictures, **changed):
    """timm's evaluation of the original files."""
    images, labels = split_of(pictures, "minival")
    return (forward(vit, images, vit, **changed).argmax(1) == labels).float().mean().item()


def run(*words):
    return json.loads(typer_runs.invoke(squeeze, *words).stdout)


def test_dense_top1_is_timms_own_to_one_image_in_500(pictures, model, tmp_path):
    own = top1(model, pictures)
    # It matters which pixels: other colours, or the data's crop, give another figure.
    assert 0.5 < own < 0.99
    assert abs(top1(model, pictures, mean=(0.5,) * 3, std=(0.5,) * 3) - own) > 0.02
    tp.save(model, tmp_path / "m")
    out = tmp_path / "out"
    words = (pictures / "data", "--rate", 0.8, "--schedules", 8, "--json", "--out")
    found = run(tmp_path / "m", *words, out)
    assert found["dense"]["top1"] == pytest.approx(own, abs=1 / 500)
    assert "crop 0.6, bicubic, normalised by mean (0.2, 0.7, 0.5)" in found["notes"][0]
    # What is saved wants the same pixels, and knows its classes by now.
    again = tp.load(out)
    assert resolve_model_data_config(again) == resolve_model_data_config(tp.load(tmp_path / "m"))
    assert again.pretrained_cfg["label_names"] == list(CLASSES)
    best = tuple(found["best"]["schedule"])
    assert tuple(tp.pooling_of(again).schedule) == best
    assert top1(again, pictures) == pytest.approx(found["best"]["top1"], abs=1 / 500)


def test_classes_in_another_order_are_matched_or_stop_it(pictures, model, tmp_path):
    own, order = top1(model, pictures), [2, 0, 3, 1]
    moved = tp.load(tp.save(model, tmp_path / "m"))
    with torch.no_grad():
        moved.head.weight.copy_(model.head.weight[order])
        moved.head.bias.copy_(model.head.bias[order])
    names = [CLASSES[i] for i in order]
    words = (pictures / "data", "--rate", 0.8, "--schedules", 8, "--json", "--out")
    # Nothing says what they are called: seen from the predictions, before any calibration.
    tp.save(moved, tmp_path / "unknown")
    with pytest.raises(UserError, match="with the order of the classes changed: it names"):
        run(tmp_path / "unknown", *words, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "map.txt").write_text("\n".join(names))
    found = run(tmp_path / "unknown", *words, tmp_path / "b", "--class-map", tmp_path / "map.txt")
    assert found["dense"]["top1"] == pytest.approx(own, abs=1 / 500)
    # The model knows it itself.
    moved.pretrained_cfg |= {"label_names": names, "num_classes": 4}
    tp.save(moved, tmp_path / "known")
    found = run(tmp_path / "known", *words, tmp_path / "c")
    assert found["dense"]["top1"] == pytest.approx(own, abs=1 / 500)
    assert "4 of 4 stand in another order" in found["notes"][1]
    assert tp.load(tmp_path / "c").pretrained_cfg["label_names"] == list(CLASSES)


def test_what_cannot_work_is_refused_before_the_work(pictures, model, tmp_path, monkeypatch):
    def scored(*args, **kwargs):
        raise AssertionError("work was begun")

    monkeypatch.setattr(Scorer, "__init__", scored)
    words = (pictures / "data", "--rate", 0.8, "--out")
    tp.save(model, tmp_path / "m")
    # A folder that cannot be made: its parent is a file.
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run(tmp_path / "m", *words, tmp_path / "file" / "out")

    # A model that could not be saved: an activation of somebody's own, a head that is no layer.
    class Own(torch.nn.Module):
        def forward(self, x):
            return x

    for _name, strange in (("Own", {"act_layer": Own}), ("Conv1d", {})):
        vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, depth=1, num_classes=4, **strange
        )
        if not strange:
            vit.head = torch.nn.Sequential(torch.nn.Conv1d(1, 1, 1))
        monkeypatch.setattr(timm, "create_model", lambda *a, vit=vit, **k: vit)
        with pytest.raises(UserError, match="cannot be saved"):
            run("vit_tiny_patch16_224", *words, tmp_path / "out")
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()


def test_plain_weights_need_a_name_and_get_its_preprocessing(pictures, model, tmp_path):
    path = tmp_path / "last.pth.tar"
    torch.save({"state_dict": model.state_dict()}, path)
    words = (pictures / "data", "--rate", 0.8, "--schedules", 8, "--json", "--out")
    with pytest.raises(UserError, match="does not say which model it is of: give --arch"):
        run(path, *words, tmp_path / "out")
    with pytest.raises(UserError, match="does not fit"):
        run(path, *words, tmp_path / "out", "--arch", "vit_tiny_patch16_224")
