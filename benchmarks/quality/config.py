"""What `tokenpool bench quality` compares: data, base models, methods, schedules, the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from benchmarks.quality.schedules import DIFFRATE, POWERBERT, SQUEEZE, shape_names
from pipelines.config import (
    DataConfig,
    ModelConfig,
    Positive,
    StrictModel,
    TrainConfig,
    WidthConfig,
)
from tokenpool import parse_method

Share = Annotated[float, Field(gt=0, lt=1)]


class ExtractConfig(StrictModel):
    """PoWER-BERT's training of soft-extract vectors, from which the paper took its K."""

    steps: Positive = Field(default=48, description="Batches each run trains its vectors on.")
    learning_rate: float = Field(default=0.05, gt=0)
    runs: Positive = Field(default=7, description="Penalties tried for a cost, by bisection.")


class QualityConfig(StrictModel):
    """One comparison."""

    name: str
    data: DataConfig
    model: ModelConfig = ModelConfig()
    widths: tuple[WidthConfig, ...] = Field(
        default=(), description="Trained here from scratch, by `base`; with `models` none."
    )
    models: tuple[Path, ...] = Field(
        default=(), description="Saved dense models with the data's classes, of several widths."
    )
    base: TrainConfig | None = None
    finetune: TrainConfig = Field(description="The same for all, dense models included.")
    finetune_images: Positive | None = Field(
        default=None, description="Images of an epoch; none: all there are."
    )
    methods: tuple[str, ...] = Field(min_length=1, description="Compared at equal K.")
    k_from: str = Field(
        default=POWERBERT, description="The shape of these K: one of those of `shapes`."
    )
    shapes: tuple[str, ...] = Field(default=(), description="Compared by the method `shaped`.")
    shaped: str = "leader"
    costs: tuple[Share, ...] = Field(
        default=(0.2, 0.35, 0.5, 0.65, 0.8, 0.95),
        description="Of the dense MACs, as pruning to these K would leave them.",
    )
    shape_costs: tuple[Share, ...] = Field(default=(0.35, 0.5, 0.65))
    seeds: Positive = 3
    batch_size: Positive = Field(default=128, description="Images per forward pass of inference.")
    extract: ExtractConfig = ExtractConfig()
    squeeze_schedules: Positive = 120
    squeeze_images: Positive = 256

    @model_validator(mode="after")
    def _fits(self) -> QualityConfig:
        if bool(self.widths) == bool(self.models):
            raise ValueError("give widths to train, with base, or models: one of the two")
        if self.widths and self.base is None:
            raise ValueError("base is missing: the recipe of the widths")
        if self.widths and self.data.image_size % self.model.patch_size:
            raise ValueError(
                f"data.image_size {self.data.image_size} is not a multiple of model.patch_size "
                f"{self.model.patch_size}"
            )
        for method in (*self.methods, self.shaped):
            parse_method(method)
        known = shape_names()
        for shape in (*self.shapes, self.k_from):
            if shape not in known:
                raise ValueError(f"no shape {shape!r}: use {', '.join(known)}")
        if self.k_from == SQUEEZE:
            raise ValueError(
                "k_from squeeze would be found for one method: name it in shapes, and here one of "
                f"{', '.join(name for name in known if name != SQUEEZE)}"
            )
        return self


__all__ = ["DIFFRATE", "POWERBERT", "SQUEEZE", "QualityConfig"]
