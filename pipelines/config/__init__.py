"""The typed configuration of a search or a training run, and its hash."""

from __future__ import annotations

from pipelines.config.augmentation import AugmentConfig
from pipelines.config.budget import BudgetConfig
from pipelines.config.common import DataConfig, ModelConfig, Positive, RunConfig, StrictModel
from pipelines.config.identity import config_hash, deciding, differences
from pipelines.config.search import SearchConfig
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
from pipelines.config.training import (
    DistillConfig,
    SandwichConfig,
    SubNetConfig,
    TrainConfig,
    TrainRunConfig,
    WorkersConfig,
    check_sandwich,
)

__all__ = [
    "AugmentConfig",
    "BaseStageConfig",
    "BudgetConfig",
    "CalibrateStageConfig",
    "DataConfig",
    "DistillConfig",
    "FinalsStageConfig",
    "ModelConfig",
    "PlanStageConfig",
    "Positive",
    "PublishStageConfig",
    "RunConfig",
    "SandwichConfig",
    "ScreenStageConfig",
    "SearchConfig",
    "SearchWidthConfig",
    "SpaceConfig",
    "StrictModel",
    "SubNetConfig",
    "SupernetStageConfig",
    "TrainConfig",
    "TrainRunConfig",
    "WidthConfig",
    "WorkersConfig",
    "check_sandwich",
    "config_hash",
    "deciding",
    "differences",
]
