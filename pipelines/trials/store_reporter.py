"""A job's reports and checkpoints in an object store, under Ray Train.

The same as `ray_reporter.RayReporter` does in a shared folder; here nothing can be renamed or
linked: whether a checkpoint is whole its manifests tell, which are looked at where it is taken up.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipelines.storage.copies import RESUMED, local_copy
from pipelines.storage.room import MINUTES
from pipelines.storage.store import ObjectStore
from pipelines.train.checkpoint import (
    BEST_NAME,
    SCORE,
    STATE_NAME,
    damage,
    folder_name,
    is_within_epoch,
)
from pipelines.train.checkpoint_room import part_of_checkpoint
from pipelines.train.reporter import WriteCheckpoint, store_fence
from pipelines.train.reports import add_report_to
from pipelines.trials.ray_reporter import drained_nodes, known_to_ray

logger = logging.getLogger(__name__)


class StoreReporter:
    """See `reporter.Reporter`.

    Args:
        address: of the job's folder.
        minutes: how long a full disk is waited for.
    """

    def __init__(self, address: str, minutes: float = MINUTES) -> None:
        self._store = ObjectStore(address)
        self._fence = store_fence(self._store)
        self._suffix, self._minutes = "", minutes
        self.drained: Callable[[], str] | None = drained_nodes

    def newest_checkpoint(self) -> Path | None:
        """See `Reporter`: a copy on this machine, which its processes share."""
        from ray import train

        if dist.get_rank() == 0:
            self._fence.take()
        folders = [Path(name) for name in self._checkpoints()]
        newest = train.get_checkpoint()
        committed = None if newest is None else Path(Path(newest.path).name)
        chosen = self._newest_undamaged(known_to_ray(folders, committed))
        if committed is not None and (chosen is None or chosen.name < committed.name):
            self._suffix = f"-r{len(folders)}"  # as `RayReporter` says
        return chosen

    def _newest_undamaged(self, folders: list[Path]) -> Path | None:
        for folder in folders:
            copy = local_copy(self._store.child(folder.name), RESUMED, only=True)
            problem = damage(copy)
            if problem is None:
                return copy
            logger.warning("checkpoint %s is left out: %s", folder.name, problem)
        return None

    def report(
        self, metrics: dict[str, Any], epoch: int, write: WriteCheckpoint, keep: int
    ) -> None:
        """See `Reporter`."""
        from ray import train

        name = folder_name(epoch) + self._suffix
        with part_of_checkpoint(write, None, self._minutes) as aside:
            if dist.get_rank() == 0:
                self._fence.check()
                # Before the checkpoint is there: after it the epoch may never be done again.
                add_report_to(self._store, metrics)
            train.report(
                metrics,
                checkpoint=train.Checkpoint.from_directory(aside),
                checkpoint_dir_name=name,
                checkpoint_upload_fn=self._put,
            )
        dist.barrier()  # all ranks' files are there
        if dist.get_rank() == 0:
            keep_if_best(self._store, name, metrics)
            self._delete_superseded(keep)

    def save(self, epoch: int, step: int, write: WriteCheckpoint, keep: int) -> None:
        """See `Reporter`."""
        name = folder_name(epoch, step)
        if dist.get_rank() == 0:
            self._fence.check()
        with part_of_checkpoint(write, None, self._minutes) as own:
            self._upload(own, name)
        dist.barrier()
        if dist.get_rank() == 0:
            self._delete_superseded(keep)
        dist.barrier()

    def _put(self, checkpoint: Any, name: str) -> Any:
        """Puts a rank's part in its place. Of a store that is away Ray's own words do not tell."""
        from ray import train

        self._upload(Path(checkpoint.path), name)
        storage = train.get_context().get_storage()
        return type(checkpoint)(f"{self._store.path}/{name}", storage.storage_filesystem)

    def _upload(self, folder: Path, name: str) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self._store.upload(path, f"{name}/{path.relative_to(folder)}")

    def report_again(self, metrics: dict[str, Any], checkpoint: Path) -> None:
        """See `Reporter`. The checkpoint is stored and must not be stored twice."""
        from ray import train
        from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY

        train.report({**metrics, CHECKPOINT_PATH_KEY: f"{self._store.path}/{checkpoint.name}"})

    def _checkpoints(self) -> list[str]:
        """The names of the job's checkpoints, newest first, whole or not."""
        return sorted(
            (name for name in self._store.folders() if name.startswith("epoch-")), reverse=True
        )

    def _delete_superseded(self, keep: int) -> None:
        for name in self._checkpoints()[keep:]:
            if is_within_epoch(Path(name)):  # the others are Ray's
                self._store.delete_folder(name)


def keep_if_best(store: ObjectStore, name: str, metrics: dict[str, Any]) -> None:
    """Makes `best-NAME` a copy of an epoch's checkpoint if none before it scored as high.

    It is whole once its state is there, which comes last; only then the one before is deleted.

    Args:
        store: the job's folder.
        name: of the checkpoint.
        metrics: what was reported with it.
    """
    before = [folder for folder in store.folders() if folder.startswith(f"{BEST_NAME}-")]
    records = {folder: _score_of(store, folder) for folder in before}
    best = max((score for score in records.values() if score is not None), default=None)
    if SCORE not in metrics or (best is not None and metrics[SCORE] <= best):
        return
    target = f"{BEST_NAME}-{name}"
    entries = [entry.name for entry in store.entries(name, recursive=True)]
    for entry in sorted(entries, key=lambda entry: entry == f"{name}/{STATE_NAME}"):
        store.copy(entry, f"{BEST_NAME}-{entry}")
    for folder in before:
        if folder != target:
            store.delete_folder(folder)


def _score_of(store: ObjectStore, folder: str) -> float | None:
    state = store.read(f"{folder}/{STATE_NAME}")
    try:
        return float(json.loads(state or b"")["metrics"][SCORE])
    except (ValueError, KeyError, TypeError):
        return None
