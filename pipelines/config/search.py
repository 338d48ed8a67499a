"""A whole search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import model_validator

from pipelines.config.budget import BudgetConfig
from pipelines.config.common import RunConfig
from pipelines.config.identity import config_hash
from pipelines.config.space import SearchWidthConfig, SpaceConfig, WidthConfig
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
from pipelines.storage.search_files import SEARCHES, Search


class SearchConfig(RunConfig):
    """A whole search."""

    space: SpaceConfig
    base: BaseStageConfig = BaseStageConfig()
    calibrate: CalibrateStageConfig = CalibrateStageConfig()
    plan: PlanStageConfig = PlanStageConfig()
    screen: ScreenStageConfig
    supernet: SupernetStageConfig = SupernetStageConfig()
    finals: FinalsStageConfig
    publish: PublishStageConfig = PublishStageConfig()
    budget: BudgetConfig = BudgetConfig()

    @model_validator(mode="after")
    def _consistent(self) -> SearchConfig:
        self._check_bases()
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

    def _check_bases(self) -> None:
        widths = self.space.widths
        untrained = [w for w in widths if w.checkpoint is None]
        if untrained and "train" not in self.base.model_fields_set:
            raise ValueError(f"base.train is missing: width {untrained[0].width} has no checkpoint")
        for width in untrained if self.base.inherit else []:
            wider = [w for w in widths if w.width > width.width]
            if wider and self.wider(width) is None:
                size = wider[0].width // wider[0].heads
                below = max(size, width.width // size * size)
                raise ValueError(
                    f"width {width.width} with {width.heads} heads cannot inherit from width "
                    f"{wider[0].width}, whose heads are of {size} channels: use {{width: {below}, "
                    f"heads: {below // size}}}, or base.inherit=false"
                )

    def wider(self, width: WidthConfig) -> SearchWidthConfig | None:
        """The width that one inherits from; None where it has a checkpoint or starts from scratch.

        Heads are kept whole, so both have heads of one size. The narrowest with a checkpoint, or
        where none has and `base.inherit` is on, the widest of all.
        """
        own = next(w for w in self.space.widths if w.width == width.width)
        if own.checkpoint is not None or self.base.inherit is False:
            return None
        size = width.width // width.heads
        wider = [
            w for w in self.space.widths if w.width > width.width and w.width // w.heads == size
        ]
        given = [w for w in wider if w.checkpoint is not None]
        if given:
            return min(given, key=lambda w: w.width)
        return max(wider, key=lambda w: w.width) if wider and self.base.inherit else None

    def base_epochs(self, width: WidthConfig) -> int:
        """Epochs that the base of a width is trained for, where it has no checkpoint."""
        epochs = self.base.train.epochs
        if self.wider(width) is None:
            return epochs
        return self.base.inherit_epochs or max(1, round(epochs / 3))

    @property
    def search(self) -> Search:
        """Where this search keeps its files."""
        return Search(self.root, self.name)

    @property
    def address(self) -> str | None:
        """Where it keeps them in truth, if that is in an object store."""
        if isinstance(self.storage, Path):
            return None
        return join(self.storage, f"{SEARCHES}/{self.name}")

    def resolved(self) -> dict[str, Any]:
        """The whole configuration as plain JSON types."""
        return self.model_dump(mode="json")

    def config_hash(self) -> str:
        """First 12 hex digits of the sha256 over what decides the result (not where it lies)."""
        return config_hash(self.resolved())
