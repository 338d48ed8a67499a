"""A base that somebody has trained already: taken as it is, not trained again."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import tokenpool as tp
from pipelines.data.fetch import fetch
from pipelines.data.manifest import MANIFEST_NAME
from pipelines.models.normalization import adopt
from pipelines.search.job_specs import LOADED
from pipelines.storage.store import ObjectStore
from pipelines.train.model import build_model
from pipelines.train.spec import TrainJob

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
