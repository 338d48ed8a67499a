"""A base that somebody has trained already: taken as it is, not trained again."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import timm

import tokenpool as tp
from pipelines.data.fetch import fetch
from pipelines.data.manifest import MANIFEST_NAME
from pipelines.errors import UserError
from pipelines.models.hub import is_named
from pipelines.models.normalization import adopt
from pipelines.search.job_specs import LOADED
from pipelines.storage.copies import local_path
from pipelines.storage.store import ObjectStore
from pipelines.train.model import build_model
from pipelines.train.spec import TrainJob
from tokenpool.models.storage import read_header

logger = logging.getLogger(__name__)


class _Notes(logging.Handler):
    """What is logged of a model, for the terminal: a worker's own log is not shown there."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def save_loaded_noted(job: TrainJob, source: str) -> tuple[str, list[str]]:
    """`save_loaded`, and what was chosen, changed or assumed, each for one line."""
    notes, ours = _Notes(), logging.getLogger("pipelines")
    ours.addHandler(notes)
    try:
        return save_loaded(job, source), notes.lines
    finally:
        ours.removeHandler(notes)


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
    model: Any = build_model(job.model_copy(update={"init": source}), head="own")
    if job.data.address is not None or (job.data.path / MANIFEST_NAME).is_file():
        for note in adopt(model, fetch(job.data.path, job.data.address), head=True):
            logger.warning("%s: %s", source, note)
    if job.address is None:
        return str(tp.save(model, job.directory / LOADED))
    store = ObjectStore(job.address).child(LOADED)
    with tempfile.TemporaryDirectory(prefix="tokenpool-loaded-") as folder:
        for path in tp.save(model, Path(folder) / "model").iterdir():
            store.upload(path, path.name)
    return store.address


def _classes(source: str) -> int | None:
    """How many classes a checkpoint is for, as far as it says so itself."""
    if not is_named(source) and (local_path(source) / "model.json").is_file():
        try:
            return int(read_header(local_path(source))["architecture"]["num_classes"])
        except (ValueError, KeyError) as error:
            raise UserError(f"{source}: {error}") from None
    published = timm.get_pretrained_cfg(source) if timm.is_model(source) else None
    return None if published is None else int(published.num_classes)
