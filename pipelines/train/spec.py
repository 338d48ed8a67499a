"""What one training job is: a value that travels as JSON to wherever the job runs."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pipelines.config import DataConfig, SandwichConfig, StrictModel, TrainConfig, WorkersConfig
from pipelines.storage.address import join


class ModelSpec(StrictModel):
    """A DeiT of any width."""

    width: int
    heads: int
    depth: int
    patch_size: int
    image_size: int
    num_classes: int


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
    method: str = "wkmedoids"
    init: str | None = Field(
        default=None,
        description="Weights to start from: a `tp.save` folder, a file, or a timm name.",
    )
    sandwich: SandwichConfig | None = Field(
        default=None, description="A supernet: one set of weights for all schedules."
    )
    train: TrainConfig
    workers: WorkersConfig
    seed: int = 0

    @property
    def directory(self) -> Path:
        """Where the checkpoints of this job lie, unless that is in an object store."""
        return self.storage / self.job_id

    @property
    def address(self) -> str | None:
        """Where they lie in an object store."""
        return None if self.store is None else join(self.store, self.job_id)
