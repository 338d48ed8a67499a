"""What a checkpoint of a training job is made of, and how it is taken up again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import nn

import tokenpool as tp
from pipelines.config import deciding, differences
from pipelines.errors import UserError
from pipelines.storage.address import parent
from pipelines.storage.hashes import json_hash
from pipelines.storage.store import ObjectStore
from pipelines.train.checkpoint import MODEL_NAME, JobProgress, read_progress, seal, write_progress
from pipelines.train.spec import TrainJob

logger = logging.getLogger(__name__)
ENGINE_NAME = "engine"
# How a step is computed and by whom, not what it computes.
_OF_THE_JOB = ("job_id", "workers", "store")
_OF_THE_DATA = ("loader_threads",)
_OF_TRAINING = ("accumulate", "compile", "checkpoint_activations")


def deciding_settings(job: TrainJob, train_sha256: str) -> dict[str, Any]:
    """What decides a job's result, as JSON types.

    Args:
        job: the job.
        train_sha256: of its training images, which may have moved but not changed.
    """
    values = deciding(job.model_dump(mode="json"))
    for key in _OF_THE_JOB:
        del values[key]
    for key in ("sandwich", "inherits"):
        if values[key] is None:
            del values[key]  # as it was before there were such jobs
    values["train"] = {k: v for k, v in values["train"].items() if k not in _OF_TRAINING}
    values["data"] = {k: v for k, v in values["data"].items() if k not in _OF_THE_DATA}
    values["data"]["train_sha256"] = train_sha256[:12]
    for key in ("init", "inherits"):
        if key in values:
            values[key] = _wherever_it_lies(values[key], job)
    if values["train"]["distill"] is not None:
        distill = dict(values["train"]["distill"])
        values["train"]["distill"] = distill
        distill["teacher"] = _wherever_it_lies(distill["teacher"], job)
    return values


def _wherever_it_lies(source: str | None, job: TrainJob) -> str | None:
    """Weights within the storage's parent by their place in it: a search may be moved whole."""
    storage = job.storage
    if source is not None and job.store is not None:
        return ObjectStore(parent(job.store)).relative(source) or source
    if source is not None and Path(source).is_relative_to(storage.parent):
        return str(Path(source).relative_to(storage.parent))
    return source


def check_may_resume(
    job: TrainJob,
    folder: Path,
    progress: JobProgress,
    settings: dict[str, Any],
    world_size: int,
) -> None:
    """Raises UserError, in one line, where a job must not go on from a checkpoint.

    Args:
        job: what is to go on.
        folder: the checkpoint.
        progress: its state.
        settings: the job's `deciding_settings`.
        world_size: workers there are now.
    """
    if progress.config_hash not in ("", json_hash(settings)):
        changed = differences(progress.settings, settings)
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise UserError(
            f"{job.job_id} was begun with another setting, {changed[0]}{more}: set it back, take "
            f"another name, or delete {job.address or folder.parent}"
        )
    stage = job.train.zero_stage
    if stage and progress.num_manifests != world_size:
        raise UserError(
            f"{job.job_id} was begun with {progress.num_manifests} workers and has {world_size} "
            f"now, but the checkpoints of train.zero_stage {stage} are split over the workers: "
            "take as many as before"
        )


class Saver:
    """Writes and reads the checkpoints of one job.

    Weights and optimizer are DeepSpeed's to save. The model that is scored and taken away lies
    beside them as safetensors: with an EMA it is the average, and the only copy of it.

    Args:
        job: the job.
        engine: its DeepSpeed engine.
        ema: its average, if it has one.
        settings: its `deciding_settings`.
    """

    def __init__(
        self, job: TrainJob, engine: Any, ema: ModelEmaV3 | None, settings: dict[str, Any]
    ) -> None:
        self._job, self._engine, self._ema, self._settings = job, engine, ema, settings

    @property
    def scored(self) -> nn.Module:
        """The model that is evaluated and taken away: the average where there is one."""
        module: nn.Module = self._ema.module if self._ema is not None else self._engine.module
        return module

    def progress(self, **values: Any) -> JobProgress:
        """A `JobProgress` of this job, now, with these values."""
        return JobProgress(
            num_manifests=dist.get_world_size(),
            settings=self._settings,
            config_hash=json_hash(self._settings),
            **values,
        )

    def write(self, progress: JobProgress, folder: Path) -> None:
        """Writes this rank's part of a checkpoint into an empty folder."""
        self._engine.save_checkpoint(str(folder), tag=ENGINE_NAME)
        if dist.get_rank() == 0:
            tp.save(self.scored, folder / MODEL_NAME)
            write_progress(folder, progress)
        seal(folder, dist.get_rank())

    def load(self, folder: Path) -> None:
        """Sets weights, optimizer and average to what they were."""
        self._engine.load_checkpoint(str(folder), tag=ENGINE_NAME)
        if self._ema is not None:
            averaged = tp.load(folder / MODEL_NAME)
            self._ema.module.load_state_dict(averaged.state_dict())

    def resume(self, folder: Path | None) -> JobProgress:
        """Goes on from a checkpoint, or begins, and says how far the job was.

        Raises:
            UserError: the checkpoint is of another configuration.
        """
        if folder is None:
            return self.progress(epoch=0, device_seconds=0.0)
        progress = read_progress(folder)
        check_may_resume(self._job, folder, progress, self._settings, dist.get_world_size())
        self.load(folder)
        logger.info(
            "%s goes on after %d epochs and %d steps",
            self._job.job_id,
            progress.epoch,
            progress.step,
        )
        return progress
