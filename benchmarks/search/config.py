"""What `tokenpool bench search` compares on: the data, the models, and each contender's budget."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pipelines.config import (
    DataConfig,
    ModelConfig,
    Positive,
    StrictModel,
    TrainConfig,
    WidthConfig,
)

Share = Annotated[float, Field(gt=0, lt=1)]


class HalvingConfig(StrictModel):
    """Successive halving of fine-tunings, by ASHA and by our rule alike."""

    grace_epochs: Positive = 1
    reduction_factor: float = Field(default=4.0, gt=1)


class PowerBertConfig(StrictModel):
    """PoWER-BERT's own schedule search: one training of soft-extract vectors per λ and width."""

    penalties: tuple[Annotated[float, Field(ge=0)], ...] = Field(min_length=1)
    steps: Positive = Field(default=60, description="Batches each run trains its vectors on.")
    learning_rate: float = Field(default=0.03, gt=0, description="Of the vectors.")


class OursConfig(StrictModel):
    """How much our search looks before it trains, and how much it trains."""

    calibrate_counts: int = Field(default=4, ge=2)
    calibrate_images: Positive = 64
    planned: Positive = Field(default=24, description="Planned schedules over all widths.")
    bins: Positive = 8
    schedules: Positive = Field(default=200, description="Screened over all rounds.")
    trials: Positive = Field(default=100, description="Begun over all rounds, at most.")
    rounds: Positive = Field(default=4, description="See `finals.rounds` of a search.")
    images: Positive = Field(default=256, description="Of minival they are scored on, at most.")
    noise_margin: float = Field(default=0.005, ge=0, lt=1)


class BenchConfig(StrictModel):
    """One world and the contenders in it."""

    name: str
    data: DataConfig
    model: ModelConfig
    widths: tuple[WidthConfig, ...] = Field(min_length=1)
    method: str = "wkmedoids(start=matching)"
    min_tokens: Positive = 1
    base: TrainConfig = Field(description="The dense model of each width, common to all.")
    finetune: TrainConfig = Field(description="One evaluation: a schedule trained from its base.")
    finetune_images: Positive | None = Field(
        default=None, description="Images of an epoch of fine-tuning; none: all there are."
    )
    batch_size: Positive = Field(default=128, description="Images per forward pass of inference.")
    top1_floor: float = Field(
        ge=0, lt=1, description="The hypervolume counts what lies above, as does the widest's cost."
    )
    log_cost: bool = Field(
        default=False,
        description="Hypervolume over the logarithm of the cost, from the cheapest schedule on: "
        "half the cost counts as much at a tenth of the dense model's as at its whole.",
    )
    seeds: Positive = 3
    first_seed: int = Field(
        default=0, ge=0, description="Those before it settings may have been chosen on."
    )
    evaluations: Positive = Field(description="Of random search.")
    budget: float = Field(
        default=1.0, gt=0, le=1, description="Share of what these take that everybody else gets."
    )
    rates: tuple[Share, ...] = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    least_rate: Share = Field(default=0.4, description="Of a layer, where Optuna samples.")
    halving: HalvingConfig = HalvingConfig()
    powerbert: PowerBertConfig
    ours: OursConfig = OursConfig()

    @model_validator(mode="after")
    def _fits(self) -> BenchConfig:
        if self.data.image_size % self.model.patch_size:
            raise ValueError(
                f"data.image_size {self.data.image_size} is not a multiple of model.patch_size "
                f"{self.model.patch_size}"
            )
        if self.halving.grace_epochs >= self.finetune.epochs:
            raise ValueError(
                f"halving.grace_epochs {self.halving.grace_epochs} leaves nothing to save of "
                f"finetune.epochs {self.finetune.epochs}"
            )
        return self
