"""The stages of a search."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pipelines.config.common import Positive, StrictModel
from pipelines.config.training import TrainConfig, WorkersConfig, check_sandwich


class BaseStageConfig(StrictModel):
    """Training one dense model per width that has no checkpoint."""

    train: TrainConfig = TrainConfig()
    workers: WorkersConfig = WorkersConfig()
    inherit: bool | None = Field(
        default=None,
        description="Widths without a checkpoint start from the best channels and heads of a "
        "wider one and learn from it as from a teacher; none: where a wider one has a checkpoint "
        "and heads of the same size.",
    )
    inherit_epochs: Positive | None = Field(
        default=None,
        description="Epochs of a width that inherits; none: a third of train.epochs.",
    )
    max_concurrent: Positive | None = Field(
        default=None,
        description="Widths trained at the same time, at most; none for as many as fit the "
        "cluster, also while it grows or shrinks.",
    )


class CalibrateStageConfig(StrictModel):
    """Measuring what pooling k_in → k_out tokens costs at each layer."""

    enabled: bool = True
    counts: int = Field(default=6, ge=2, description="Token counts it is measured at.")
    images: Positive = Field(default=512, description="Of minival, at most.")


class PlanStageConfig(StrictModel):
    """Schedules computed from what was calibrated: where screening starts."""

    seeds: Positive = Field(default=48, description="Planned schedules over all widths.")
    bins: Positive = Field(default=12, description="Slices of the cost they are spread over.")


class ScreenStageConfig(StrictModel):
    """Scoring schedules on minival without training."""

    schedules: Positive = 1000
    generations: Positive = 4
    actors: Positive = 1
    cpus_per_actor: float = Field(default=1.0, gt=0)
    gpus_per_actor: float = Field(
        default=0.0, ge=0, description="May be a fraction: actors then share a GPU."
    )
    batch_size: Positive = 256
    racing: bool = Field(
        default=True,
        description="Schedules that are surely worse than one of no more cost stop after few "
        "images.",
    )
    racing_tolerance: float = Field(
        default=0.005,
        ge=0,
        description="Loss (nats) by which a schedule has to be better than one of the "
        "front that costs no more; if it surely is not, it gets no more images.",
    )


class SupernetStageConfig(StrictModel):
    """One set of weights per width that all schedules run on; screening again, with them."""

    enabled: bool = False
    train: TrainConfig | None = None
    workers: WorkersConfig = WorkersConfig()
    max_concurrent: Positive | None = Field(
        default=None,
        description="Widths trained at the same time, at most; none for as many as fit.",
    )
    near: Positive = Field(
        default=16, description="Screened schedules of a width whose neighbours are trained."
    )
    random: Positive = Field(
        default=2, description="Random schedules of each step, beside the dense and the smallest."
    )
    uniform_share: float = Field(
        default=0.2, ge=0, le=1, description="Of the random ones, from anywhere in the space."
    )
    distill_weight: float = Field(
        default=1.0, ge=0, le=1, description="See `SandwichConfig.distill_weight`."
    )
    schedules: Positive = Field(default=200, description="Scored on its weights.")
    generations: Positive = 2
    min_tau: float = Field(
        default=0.6,
        ge=-1,
        le=1,
        description="Kendall's τ between its scores and the finals under which it is said that "
        "they do not agree.",
    )

    @model_validator(mode="after")
    def _trains(self) -> SupernetStageConfig:
        if self.enabled and self.train is None:
            raise ValueError("an enabled supernet needs train, as the base has it")
        if self.train is not None:
            check_sandwich(self.train)
        return self


class FinalsStageConfig(StrictModel):
    """Fine-tuning candidates as Ray Tune trials, the most promising step for its price first."""

    trials: Positive = Field(default=12, description="Begun at most, over all rounds.")
    rounds: Positive = Field(
        default=3,
        description="Of scoring schedules without training and of training the best: what one "
        "round learns, the next one breeds and chooses by.",
    )
    train: TrainConfig
    workers: WorkersConfig = WorkersConfig()
    max_concurrent: Positive | None = Field(
        default=None,
        description="Trials at the same time, at most; none for as many as fit the cluster, also "
        "while it grows or shrinks.",
    )
    grace_epochs: Positive = Field(
        default=1,
        description="Epochs to the rung, where a trial is compared with others of its cost and "
        "waits until its end is the most promising step.",
    )
    reduction_factor: float = Field(
        default=2.0, gt=1, description="One in so many may go on from there by rank alone."
    )
    log_cost: bool = Field(
        default=False,
        description="What a model adds to the front counts over the logarithm of the cost, which "
        "sends more training to cheap models.",
    )
    noise_margin: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="Top-1 (as a fraction) a trial may lack and still go on.",
    )
    seeds: Positive = Field(
        default=1,
        description="Trainings of each final on the front and of each constant keep-rate, each "
        "under its own seed.",
    )
    constant_rates: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(),
        description="Constant keep-rates trained for each width, to compare with; 1 is the plain "
        "model, trained on as long as the finals.",
    )


class PublishStageConfig(StrictModel):
    """How long each finished model takes."""

    latency_batches: tuple[Positive, ...] = Field(
        default=(1, 32, 128), description="Images at a time."
    )
    compile: bool | None = Field(
        default=None, description="Compile what is timed (torch.compile); none: on a GPU."
    )
    accelerator: str | None = Field(
        default=None,
        description="Type of GPU that latency is measured on, as Ray calls it (H100, A100, L4 …), "
        "where a cluster has several.",
    )
