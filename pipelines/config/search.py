"""A whole search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import model_validator

from pipelines.config.budget import BudgetConfig
from pipelines.config.common import RunConfig
from pipelines.config.identity import config_hash
from pipelines.config.space import SpaceConfig
from pipelines.config.stages import (
    BaseStageConfig,
    CalibrateStageConfig,
    FinalsStageConfig,
    PlanStageConfig,
    PublishStageConfig,
    ScreenStageConfig,
    SupernetStageConfig,
)
from pipelines.storage.address import join


class SearchConfig(RunConfig):
    """A whole search."""

    space: SpaceConfig
    base: BaseStageConfig
    calibrate: CalibrateStageConfig = CalibrateStageConfig()
    plan: PlanStageConfig = PlanStageConfig()
    screen: ScreenStageConfig
    supernet: SupernetStageConfig = SupernetStageConfig()
    finals: FinalsStageConfig
    publish: PublishStageConfig = PublishStageConfig()
    budget: BudgetConfig = BudgetConfig()

    @model_validator(mode="after")
    def _consistent(self) -> SearchConfig:
        size, patch = self.data.image_size, self.model.patch_size
        if size % patch:
            raise ValueError(
                f"data.image_size {size} is not a multiple of model.patch_size {patch}"
            )
        patches = self.model.num_patches(size)
        if self.space.min_tokens > patches:
            raise ValueError(
                f"space.min_tokens {self.space.min_tokens} exceeds the {patches} patch tokens "
                f"of a {size} px image with patch {patch}"
            )
        for stage, train, workers in (
            ("base", self.base.train, self.base.workers),
            ("supernet", self.supernet.train, self.supernet.workers),
            ("finals", self.finals.train, self.finals.workers),
        ):
            if train is not None and train.batch_size % (workers.num_workers * train.accumulate):
                raise ValueError(
                    f"{stage}.train.batch_size {train.batch_size} is not divisible by "
                    f"{stage}.workers.num_workers {workers.num_workers} × "
                    f"{stage}.train.accumulate {train.accumulate}"
                )
        return self

    @property
    def directory(self) -> Path:
        """Where this search keeps its ledger, checkpoints and results, on this machine."""
        return self.root / "searches" / self.name

    @property
    def address(self) -> str | None:
        """Where it keeps them in truth, if that is in an object store."""
        if isinstance(self.storage, Path):
            return None
        return join(self.storage, f"searches/{self.name}")

    def resolved(self) -> dict[str, Any]:
        """The whole configuration as plain JSON types."""
        return self.model_dump(mode="json")

    def config_hash(self) -> str:
        """First 12 hex digits of the sha256 over what decides the result (not where it lies)."""
        return config_hash(self.resolved())
