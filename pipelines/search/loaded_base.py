"""A base that somebody has trained already: taken as it is, not trained again."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import timm

import tokenpool as tp
from pipelines.data.manifest import load_manifest
from pipelines.errors import UserError
from pipelines.storage.copies import local_path
from pipelines.storage.store import ObjectStore
from pipelines.train.model import build_model
from pipelines.train.normalization import renormalize
from pipelines.train.spec import TrainJob


def save_loaded(job: TrainJob, source: str) -> str:
    """Saves what a job would start from as the job's model.

    Args:
        job: of the base, for its shapes and its folder.
        source: a timm name, the folder of a saved model, or a file of weights.

    Returns:
        Where the model lies: a path or an address.

    Raises:
        UserError: there are no such weights, or they are of another shape or for other classes.
    """
    classes = _classes(source)
    if classes is not None and classes != job.model.num_classes:
        raise UserError(
            f"{source} knows {classes} classes, the data has {job.model.num_classes}: give a "
            "checkpoint trained on this data, or leave it out to train one"
        )
    model: Any = build_model(job.model_copy(update={"init": source}))
    if timm.is_model(source):
        published = timm.get_pretrained_cfg(source)
        manifest = load_manifest(job.data.path)
        if published is not None:
            renormalize(model, (published.mean, published.std), (manifest.mean, manifest.std))
    if job.address is None:
        return str(tp.save(model, job.directory / "loaded"))
    store = ObjectStore(job.address).child("loaded")
    with tempfile.TemporaryDirectory(prefix="tokenpool-loaded-") as folder:
        for path in tp.save(model, Path(folder) / "model").iterdir():
            store.upload(path, path.name)
    return store.address


def _classes(source: str) -> int | None:
    """How many classes a checkpoint is for, as far as it says so itself."""
    header = local_path(source) / "model.json"
    if header.is_file():
        return int(json.loads(header.read_text())["architecture"]["num_classes"])
    published = timm.get_pretrained_cfg(source) if timm.is_model(source) else None
    return None if published is None else int(published.num_classes)
