"""What one training job is, and how the YAML of one run becomes one.

A job is a value that travels as JSON to wherever it runs.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from pipelines.config import (
    DataConfig,
    SandwichConfig,
    StrictModel,
    TrainConfig,
    TrainRunConfig,
    WorkersConfig,
)
from pipelines.data.fetch import fetch
from pipelines.errors import UserError
from pipelines.models.model_spec import ModelSpec
from pipelines.storage.address import join
from pipelines.storage.room import MINUTES
from pipelines.storage.store import ObjectStore
from pipelines.train.job_folder import JobFolder, PathFolder, StoreFolder

LOCAL = "local-dir:"  # before the folder of a model as hubs write them


class TrainJob(StrictModel):
    """One job: one model trained on N workers.

    The job's folder is `storage / job_id`; it holds the checkpoints and decides what a second
    run of the same job resumes from.
    """

    job_id: str
    storage: Path
    store: str | None = Field(
        default=None, description="The address that `storage` stands for, if it is none itself."
    )
    data: DataConfig
    model: ModelSpec
    schedule: tuple[int, ...] | None = Field(
        default=None, description="Tokens kept per block, or dense."
    )
    method: str = "leader"
    init: str | None = Field(
        default=None,
        description="Weights to start from: a `tp.save` folder, a file, or a timm name.",
    )
    inherits: str | None = Field(
        default=None,
        description="A wider model's `tp.save` folder: the best of its channels and heads are "
        "where the job starts.",
    )
    sandwich: SandwichConfig | None = Field(
        default=None, description="A supernet: one set of weights for all schedules."
    )
    train: TrainConfig
    workers: WorkersConfig
    stall_minutes: float | None = None
    full_disk_minutes: float = MINUTES
    seed: int = 0

    @field_validator("init", "inherits")
    @classmethod
    def _init_travels(cls, init: str | None) -> str | None:
        return None if init is None else _absolute(init)

    @field_validator("train")
    @classmethod
    def _teacher_travels(cls, train: TrainConfig) -> TrainConfig:
        if train.distill is None:
            return train
        teacher = _absolute(train.distill.teacher)
        distill = train.distill.model_copy(update={"teacher": teacher})
        return train.model_copy(update={"distill": distill})

    @property
    def directory(self) -> Path:
        """Where the checkpoints of this job lie, unless that is in an object store."""
        return self.storage / self.job_id

    @property
    def address(self) -> str | None:
        """Where they lie in an object store."""
        return None if self.store is None else join(self.store, self.job_id)

    @property
    def folder(self) -> JobFolder:
        """Where they lie."""
        if self.address is None:
            return PathFolder(self.directory, self.full_disk_minutes)
        return StoreFolder(ObjectStore(self.address), self.full_disk_minutes)


def _absolute(source: str) -> str:
    """A path that is here for workers, which run in other folders; anything else as it is."""
    prefix = LOCAL if source.startswith(LOCAL) else ""
    path = Path(source.removeprefix(prefix))
    return f"{prefix}{path.resolve()}" if path.exists() else source


def job_of(config: TrainRunConfig) -> TrainJob:
    """The job a configuration describes.

    Raises:
        UserError: the data is not prepared, or the schedule does not fit the model.
    """
    import tokenpool as tp  # and torch, which who only passes jobs on does without

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
