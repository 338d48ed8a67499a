"""What a checkpoint of a training job is made of, and how it is taken up again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import nn

import tokenpool as tp
from pipelines.train.checkpoint import MODEL_NAME, JobProgress, read_progress, seal, write_progress
from pipelines.train.resume import check_may_resume, settings_hash
from pipelines.train.spec import TrainJob

logger = logging.getLogger(__name__)
ENGINE_NAME = "engine"


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
            config_hash=settings_hash(self._settings),
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
