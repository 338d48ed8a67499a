"""From the YAML of one training run to its job."""

from __future__ import annotations

from pathlib import Path

import tokenpool as tp
from pipelines.config import TrainRunConfig
from pipelines.data.fetch import fetch
from pipelines.errors import UserError
from pipelines.storage.address import join
from pipelines.train.spec import ModelSpec, TrainJob


def job_of(config: TrainRunConfig) -> TrainJob:
    """The job a configuration describes.

    Raises:
        UserError: the data is not prepared, or the schedule does not fit the model.
    """
    manifest = fetch(config.data.path, config.data.address)
    if config.schedule is not None:
        try:
            schedule = tp.Schedule(config.schedule)
        except ValueError as error:
            raise UserError(f"schedule: {error}") from None
        patches = config.model.num_patches(config.data.image_size)
        if len(schedule) != config.model.depth or schedule[0] > patches:
            raise UserError(
                f"schedule {schedule} does not fit {config.model.depth} blocks of {patches} tokens"
            )
    return TrainJob(
        job_id=config.name,
        storage=(config.root / "trains").resolve(),
        store=None if isinstance(config.storage, Path) else join(config.storage, "trains"),
        data=config.data.model_copy(update={"path": config.data.path.resolve()}),
        model=ModelSpec(
            width=config.width.width,
            heads=config.width.heads,
            depth=config.model.depth,
            patch_size=config.model.patch_size,
            image_size=config.data.image_size,
            num_classes=len(manifest.classes),
        ),
        schedule=config.schedule,
        method=config.method,
        init=config.init,
        sandwich=config.sandwich,
        train=config.train,
        workers=config.workers,
        stall_minutes=config.stall_minutes,
        full_disk_minutes=config.full_disk_minutes,
        seed=config.seed,
    )
