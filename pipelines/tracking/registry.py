"""Published models in MLflow's model registry, with signature and input example."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

import tokenpool as tp
from pipelines.data.loader import make_loader
from pipelines.data.manifest import Manifest, load_manifest
from pipelines.data.preprocessing import preprocessing_of
from pipelines.errors import UserError
from pipelines.results.find_data import find_data
from pipelines.results.front import Point, build_front
from pipelines.results.load_checkpoint import load_checkpoint
from pipelines.search.state import SearchState
from pipelines.storage.search_files import Search
from pipelines.tracking.mirror import LedgerMirror
from pipelines.tracking.mlflow_errors import told
from pipelines.tracking.tracking_store import TrackingStore

if TYPE_CHECKING:
    from mlflow import MlflowClient

_REQUIREMENTS = ("torch", "timm", "safetensors", "numpy", "mlflow")
_EXAMPLES = 2


@dataclass(frozen=True)
class Registered:
    """A version of a registered model."""

    point_id: str
    version: str
    new: bool


def register_published(
    search: Search, state: SearchState, store: TrackingStore, *, data: Path | None = None
) -> list[Registered]:
    """Registers every front point whose validation top-1 was published, once.

    The registered model has the search's name; each version an alias, its point's id, and the
    knee's the alias `knee` as well: `models:/digits@knee`. `data` is where the prepared data is
    now, if it was moved.

    Raises:
        UserError: Nothing is published, a checkpoint or the data is gone, or MLflow does not take
            it; one line.
    """
    front = build_front(state)
    points = [point for point in front.on_front if point.top1_val is not None]
    if not points:
        raise UserError(
            f"no model of {state.name} is published yet: finish the search first", exit_code=1
        )
    with told(store, all_errors=False):
        return _register_points(LedgerMirror(search, store), points, state, data)


def _register_points(
    mirror: LedgerMirror, points: list[Point], state: SearchState, data: Path | None
) -> list[Registered]:
    mirror.read()
    mirror.send(with_artifacts=False)
    client = mirror.client
    known = _existing_versions(client, state.name)
    found = []
    for point in points:
        # Of several seeds the one whose checkpoint stands for the point.
        run_id = mirror.run_id(next(t.model_id for t in point.trainings if t.is_finished))
        version = known.get(run_id)
        new = version is None
        if version is None:
            version = _register(client, state, point, run_id, data)
        client.set_registered_model_alias(state.name, point.point_id, version)
        if point.is_knee:
            client.set_registered_model_alias(state.name, "knee", version)
        found.append(Registered(point.point_id, version, new))
    return found


def renew(
    search: Search, state: SearchState, store: TrackingStore, gone: Set[str]
) -> list[Registered]:
    """Registers anew what was registered from runs that are gone, and drops those versions.

    Gives the versions there are now; none if none was registered from the runs of the ids `gone`.

    Raises:
        UserError: A checkpoint or the data is gone; the old versions are left as they were.
    """
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store.uri)
    versions = client.search_model_versions(f"name = '{state.name}'")
    old = [version for version in versions if version.run_id in gone]
    if not old:
        return []
    found = register_published(search, state, store)
    for version in old:
        client.delete_model_version(state.name, version.version)
    return found


def _existing_versions(client: MlflowClient, name: str) -> dict[str, str]:
    """Run id → version of what is registered under a name, which is created if need be."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, tags={"tokenpool.search": name})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}'")
    return {str(version.run_id): str(version.version) for version in versions}


def register_folder(
    folder: Path, data: Path, store: TrackingStore, name: str | None = None
) -> Registered:
    """Registers a model that `tp.save` or `tokenpool squeeze` wrote, with a run of its own.

    The registered model and the experiment have the folder's name, unless another is given; the
    prepared data must be of the model's classes.

    Raises:
        UserError: The model cannot be read or is for other classes, the data is not there, or
            MLflow does not take it; one line.
    """
    try:
        model = tp.load(folder).eval()
    except ValueError as error:
        raise UserError(str(error)) from None
    manifest = load_manifest(data)
    if model.num_classes != len(manifest.classes):
        raise UserError(
            f"{folder} knows {model.num_classes} classes, {data} has {len(manifest.classes)}"
        )
    view = preprocessing_of(model, manifest)
    served = _Served(model, manifest, data, view.size[0], view.mean, view.std, "auto")
    point_id = folder.resolve().name
    name = name or point_id
    pooling, gmacs = tp.pooling_of(model), tp.macs(model).gmacs
    facts = {
        "point": point_id,
        "gmacs": f"{gmacs:.6g}",
        "schedule": str(pooling.realised) if pooling else "dense",
        "method": pooling.method_text if pooling else "dense",
    }
    with told(store, all_errors=False):
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=store.uri)
        known = client.get_experiment_by_name(name)
        place = None if store.artifact_root is None else (store.artifact_root / name).as_uri()
        experiment = known.experiment_id if known else client.create_experiment(name, place)
        _existing_versions(client, name)
        run_id = client.create_run(experiment, run_name=point_id).info.run_id
        for key, value in facts.items():
            client.log_param(run_id, key, value)
        version = _add_version(
            client, name, run_id, served, facts, f"{point_id}: {gmacs:.4g} GMACs"
        )
        client.set_terminated(run_id)
    return Registered(point_id, version, True)


def _register(
    client: MlflowClient, state: SearchState, point: Point, run_id: str, data: Path | None
) -> str:
    config = state.config.data
    source = find_data(state, data)
    manifest = load_manifest(source)
    served = _Served(
        load_checkpoint(point),
        manifest,
        source,
        config.image_size,
        manifest.mean,
        manifest.std,
        config.loader,
    )
    tags = {
        "point": point.point_id,
        "gmacs": f"{point.gmacs:.6g}",
        "top1_val": f"{point.top1_val:.6g}",
        "schedule": point.schedule_text,
        "config_hash": state.config_hash,
    }
    about = (
        f"{point.point_id}: width {point.width}, {point.gmacs:.4g} GMACs, "
        f"{100 * (point.top1_val or 0.0):.2f} % top-1 on validation"
    )
    return _add_version(client, state.name, run_id, served, tags, about)


@dataclass(frozen=True)
class _Served:
    """A model, the data it is for, where that lies, and how images look; colours are in 0..1."""

    model: nn.Module
    manifest: Manifest
    source: Path
    image_size: int
    mean: Sequence[float]
    std: Sequence[float]
    loader: Any


def _add_version(
    client: MlflowClient, name: str, run_id: str, served: _Served, tags: dict[str, str], about: str
) -> str:
    folder = Path(tempfile.mkdtemp(prefix="tokenpool-register-"))
    try:
        _save_pyfunc(served, folder)
        client.log_artifacts(run_id, str(folder / "model"), "model")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    artifacts = client.get_run(run_id).info.artifact_uri
    version = client.create_model_version(
        name, source=f"{artifacts}/model", run_id=run_id, tags=tags, description=about
    )
    return str(version.version)


def _save_pyfunc(served: _Served, folder: Path) -> None:
    """The model in MLflow's pyfunc layout: safetensors, this package's operator, no pickle."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    classes, size = served.manifest.classes, served.image_size
    saved = tp.save(served.model, folder / "saved")
    facts = {"mean": list(served.mean), "std": list(served.std), "classes": classes}
    (saved / "preprocessing.json").write_text(json.dumps(facts))
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, size, size, 3), name=None)]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, len(classes)), name=None)]),
    )
    requirements = [f"{name}=={importlib.metadata.version(name)}" for name in _REQUIREMENTS]
    # Bars over three files, and a warning of type hints where a signature is given.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            path=folder / "model",
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"model": str(saved)},
            code_paths=[str(_operator_only(folder / "code"))],
            signature=signature,
            input_example=example_images(served.source, size, served.loader),
            pip_requirements=requirements,
        )


def example_images(source: Path, image_size: int, implementation: Any = "auto") -> np.ndarray:
    """A few validation images, uint8 `[B, H, W, 3]`."""
    loader = make_loader(
        source,
        "val",
        batch_size=_EXAMPLES,
        train=False,
        image_size=image_size,
        implementation=implementation,
    )
    try:
        images, _ = next(iter(loader))
        pixels: np.ndarray = images.permute(0, 2, 3, 1).contiguous().numpy()
        return pixels
    finally:
        loader.close()


def _operator_only(target: Path) -> Path:
    """A copy of the `tokenpool` package without caches: all that serving needs of this software."""
    package = Path(tp.__file__).parent
    shutil.copytree(package, target / "tokenpool", ignore=shutil.ignore_patterns("__pycache__"))
    return target / "tokenpool"
