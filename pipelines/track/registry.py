"""Published models in MLflow's model registry, with signature and input example."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import tokenpool as tp
from pipelines.data.loader import make_loader
from pipelines.data.manifest import load_manifest
from pipelines.errors import UserError
from pipelines.search.state import SearchState
from pipelines.track.export import load_checkpoint
from pipelines.track.front import Point, build_front
from pipelines.track.mirror import LedgerMirror
from pipelines.track.mlflow_errors import told
from pipelines.track.store import TrackingStore
from pipelines.track.where import find_data

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
    storage: Path, state: SearchState, store: TrackingStore, *, data: Path | None = None
) -> list[Registered]:
    """Registers every front point whose validation top-1 was published, once.

    The registered model has the search's name; each version an alias, its point's id, and the
    knee's the alias `knee` as well: `models:/digits@knee`.

    Args:
        storage: Folder that keeps the searches.
        state: The search.
        store: Where MLflow keeps it.
        data: The prepared data, where it is no longer where the search read it.

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
        return _register_points(
            LedgerMirror(storage / "searches" / state.name, store), points, state, data
        )


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
        run_id = mirror.run_id(next(t.run_id for t in point.trainings if t.finished))
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
    storage: Path, state: SearchState, store: TrackingStore, gone: Set[str]
) -> list[Registered]:
    """Registers anew what was registered from runs that are gone, and drops those versions.

    Args:
        storage: Folder that keeps the searches.
        state: The search.
        store: Where MLflow keeps it.
        gone: Ids of the runs that were deleted.

    Returns:
        The versions there are now; empty if none was registered from those runs.

    Raises:
        UserError: A checkpoint or the data is gone; the old versions are left as they were.
    """
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store.uri)
    versions = client.search_model_versions(f"name = '{state.name}'")
    old = [version for version in versions if version.run_id in gone]
    if not old:
        return []
    found = register_published(storage, state, store)
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


def _register(
    client: MlflowClient,
    state: SearchState,
    point: Point,
    run_id: str,
    data: Path | None,
) -> str:
    folder = Path(tempfile.mkdtemp(prefix="tokenpool-register-"))
    try:
        _save_pyfunc(state, point, folder, data)
        client.log_artifacts(run_id, str(folder / "model"), "model")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    artifacts = client.get_run(run_id).info.artifact_uri
    version = client.create_model_version(
        state.name,
        source=f"{artifacts}/model",
        run_id=run_id,
        tags={
            "point": point.point_id,
            "gmacs": f"{point.gmacs:.6g}",
            "top1_val": f"{point.top1_val:.6g}",
            "schedule": point.schedule_text,
            "config_hash": state.config_hash,
        },
        description=f"{point.point_id}: width {point.width}, {point.gmacs:.4g} GMACs, "
        f"{100 * (point.top1_val or 0.0):.2f} % top-1 on validation",
    )
    return str(version.version)


def _save_pyfunc(state: SearchState, point: Point, folder: Path, data: Path | None) -> None:
    """The model in MLflow's pyfunc layout: safetensors, this package's operator, no pickle."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    config = state.config["data"]
    source = find_data(state, data)
    manifest = load_manifest(source)
    model = load_checkpoint(point)
    saved = tp.save(model, folder / "saved")
    facts = {"mean": list(manifest.mean), "std": list(manifest.std), "classes": manifest.classes}
    (saved / "preprocessing.json").write_text(json.dumps(facts))
    size = config["image_size"]
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, size, size, 3), name=None)]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, len(manifest.classes)), name=None)]),
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
            input_example=example_images(source, config),
            pip_requirements=requirements,
        )


def example_images(source: Path, config: dict[str, Any]) -> np.ndarray:
    """A few validation images, uint8 `[B, H, W, 3]`."""
    loader = make_loader(
        source,
        "val",
        batch_size=_EXAMPLES,
        train=False,
        image_size=config["image_size"],
        implementation=config.get("loader", "auto"),
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
