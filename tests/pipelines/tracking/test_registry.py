"""The model registry: published points as models that answer on raw images."""

import subprocess
import sys
from pathlib import Path

import ledgers
import mlflow
import numpy as np
import pytest
import torch

import tokenpool as tp
from pipelines.data.loader import make_loader
from pipelines.data.manifest import load_manifest
from pipelines.data.prepare import prepare
from pipelines.errors import UserError
from pipelines.search.state import SearchState, fold
from pipelines.storage.search_files import Search
from pipelines.tracking.registry import (
    Registered,
    example_images,
    register_folder,
    register_published,
)
from pipelines.tracking.tracking_store import tracking_store
from pipelines.tracking.upkeep import rebuild


def test_nothing_published(folder: Path) -> None:
    state = fold("digits", ledgers.events(complete=False))
    with pytest.raises(UserError, match="no model of digits is published yet"):
        register_published(Search(folder, "digits"), state, tracking_store(folder))


@pytest.fixture
def search(folder: Path) -> SearchState:
    """The made-up search with two real models among its published ones, and real data."""
    data = folder / "data"
    prepare("digits", data)
    torch.manual_seed(0)
    checkpoints = {}
    for name, schedule in (("t001", (48, 40, 32, 24, 16, 8)), ("dense-96", None)):
        model = tp.build_vit(32, 4, 96, 6, 3, 10)
        if schedule:
            tp.pool(model, schedule, "wkmedoids")
        checkpoints[name] = str(tp.save(model.eval(), folder / "checkpoints" / name))
    rows = ledgers.events()
    rows[0]["config"]["data"]["path"] = str(data)
    for row in rows:
        if row["event"] == "trial_done" and row["trial_id"] == "t001":
            row["checkpoint"] = checkpoints["t001"]
        if row["event"] == "base_done" and row["width"] == 96:
            row["checkpoint"] = checkpoints["dense-96"]
    ledgers.write_ledger(folder, "digits", rows)
    return fold("digits", rows)


def test_published_models_answer_on_images(folder: Path, search: SearchState) -> None:
    store, data = tracking_store(folder), folder / "data"
    checkpoint = str(search.trials["t001"].checkpoint)
    first = register_published(Search(folder, "digits"), search, store)
    assert [(r.point_id, r.version, r.new) for r in first] == [
        ("t001", "1", True),
        ("dense-96", "2", True),
    ]
    again = register_published(Search(folder, "digits"), search, store)
    assert [(r.version, r.new) for r in again] == [("1", False), ("2", False)]

    mlflow.set_tracking_uri(store.uri)
    loaded = mlflow.pyfunc.load_model("models:/digits@t001")
    images = example_images(data, search.config.data.image_size)
    manifest = load_manifest(data)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (manifest.mean, manifest.std))
    expected = tp.load(checkpoint)((pixels - mean) / std).detach().numpy()
    assert np.allclose(loaded.predict(images), expected, atol=1e-5)
    assert loaded.metadata.signature.inputs.inputs[0].shape == (-1, 32, 32, 3)
    assert loaded.input_example.shape == (2, 32, 32, 3)
    with pytest.raises(mlflow.MlflowException):
        loaded.predict(images[:, :16])


def test_a_squeezed_folder_is_registered_with_its_own_colours(folder: Path) -> None:
    data = folder / "data"
    prepare("digits", data)
    model = tp.build_vit(32, 4, 96, 6, 3, 10)
    model.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.25)}
    pooled = tp.pool(model, (40, 30, 20, 10, 5, 2)).eval()
    saved = tp.save(pooled, folder / "squeezed")
    store = tracking_store(folder)
    assert register_folder(saved, data, store, "pets") == Registered("squeezed", "1", True)
    assert register_folder(saved, data, store, "pets").version == "2"
    mlflow.set_tracking_uri(store.uri)
    images = example_images(data, 32)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.5, 0.5, 0.25]
    ).view(3, 1, 1)
    found = mlflow.pyfunc.load_model("models:/pets/1").predict(images)
    assert np.allclose(found, pooled(pixels).detach().numpy(), atol=1e-5)
    version = mlflow.MlflowClient(tracking_uri=store.uri).get_model_version("pets", "1")
    assert version.tags["schedule"] == "40,30,20,10,5,2"
    other = tp.save(tp.build_vit(32, 4, 96, 6, 3, 7).eval(), folder / "other")
    with pytest.raises(UserError, match=r"knows 7 classes, .* has 10"):
        register_folder(other, data, store)


@pytest.mark.slow  # registers everything twice
def test_rebuilt_the_registry_has_the_same_models(folder: Path, search: SearchState) -> None:
    store = tracking_store(folder)
    register_published(Search(folder, "digits"), search, store)
    mlflow.set_tracking_uri(store.uri)
    images = example_images(folder / "data", search.config.data.image_size)
    before = mlflow.pyfunc.load_model("models:/digits@t001").predict(images)
    rebuild(Search(folder, "digits"), store)
    client = mlflow.MlflowClient(tracking_uri=store.uri)
    versions = client.search_model_versions("name = 'digits'")
    assert sorted(version.tags["point"] for version in versions) == ["dense-96", "t001"]
    for version in versions:
        assert client.get_run(version.run_id).info.lifecycle_stage == "active"
    again = mlflow.pyfunc.load_model("models:/digits@t001")
    assert np.array_equal(again.predict(images), before)


@pytest.mark.slow  # another process has to import MLflow and torch
def test_it_loads_where_this_software_is_not_installed(folder: Path) -> None:
    """Only what the registry keeps: `pipelines` and the installed `tokenpool` are blocked."""
    data = folder / "data"
    prepare("digits", data)
    checkpoint = tp.save(tp.build_vit(32, 4, 96, 6, 3, 10).eval(), folder / "saved")
    rows = ledgers.events()
    rows[0]["config"]["data"]["path"] = str(data)
    rows = [row for row in rows if row["event"] != "published" or "width" in row]
    for row in rows:
        if row["event"] == "base_done" and row["width"] == 96:
            row["checkpoint"] = str(checkpoint)
    ledgers.write_ledger(folder, "digits", rows)
    store = tracking_store(folder)
    register_published(Search(folder, "digits"), fold("digits", rows), store)
    script = (
        "import sys, numpy as np\n"
        "sys.modules['pipelines'] = None\n"
        "sys.path[:] = [p for p in sys.path if not p.endswith('/main')]\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "import mlflow\n"
        f"mlflow.set_tracking_uri({store.uri!r})\n"
        "model = mlflow.pyfunc.load_model('models:/digits/1')\n"
        "import tokenpool\n"
        "assert 'mlartifacts' in tokenpool.__file__, tokenpool.__file__\n"
        "assert model.predict(np.zeros((3, 32, 32, 3), np.uint8)).shape == (3, 10)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=folder)


def test_example_images_are_pixels(folder: Path) -> None:
    prepare("digits", folder / "data")
    config = {"image_size": 32}
    images = example_images(folder / "data", config["image_size"], config.get("loader", "auto"))
    loader = make_loader(folder / "data", "val", batch_size=2, train=False, image_size=32)
    expected, _ = next(iter(loader))
    loader.close()
    assert images.dtype == np.uint8
    assert np.array_equal(images, expected.permute(0, 2, 3, 1).numpy())
