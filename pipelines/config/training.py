"""One training job: its recipe and its processes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipelines.config.augmentation import AugmentConfig
from pipelines.config.common import Positive, RunConfig, StrictModel, Weights
from pipelines.config.space import WidthConfig


class DistillConfig(StrictModel):
    """Learning from a teacher as well as from the labels."""

    teacher: Weights = Field(description="A saved model's folder, or the name of a timm model.")
    kind: Literal["soft", "hard"] = "soft"
    weight: float = Field(default=0.5, gt=0, le=1, description="Share of the loss.")
    temperature: float = Field(default=1.0, gt=0, description="Of the soft kind.")


class TrainConfig(StrictModel):
    """One training job: DeiT's recipe (Touvron 2021), scaled to the data at hand."""

    epochs: Positive = 300
    batch_size: Positive = Field(
        default=1024, description="Images per optimizer step over all workers."
    )
    lr: float = Field(default=1e-3, gt=0, description="Peak learning rate of AdamW.")
    min_lr: float = Field(default=1e-5, ge=0)
    warmup_epochs: float = Field(default=5.0, ge=0)
    lr_schedule: Literal["cosine", "wsd"] = Field(
        default="cosine", description="wsd: warmup, stable, then a linear decay at the end."
    )
    decay_fraction: float = Field(
        default=0.2, gt=0, le=1, description="Share of the steps in which wsd decays."
    )
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="Rate of each block against the one after it."
    )
    weight_decay: float = Field(default=0.05, ge=0, description="Not applied to biases and norms.")
    clip_grad: float = Field(
        default=1.0, ge=0, description="Largest gradient norm; 0 for no clipping."
    )
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    ema_decay: float = Field(
        default=0.0, ge=0, lt=1, description="Of the weights per step; 0 for none."
    )
    accumulate: Positive = Field(
        default=1, description="Micro-batches a worker's share of a batch is computed in."
    )
    micro_batch: Positive | None = Field(
        default=None,
        description="Images a worker computes at a time: `accumulate` said as a size. Out of "
        "memory halves it, with either of them or none.",
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = Field(default=False, description="Compile the model (torch.compile).")
    checkpoint_activations: bool = Field(
        default=False, description="Compute activations again in the backward pass, to save memory."
    )
    distill: DistillConfig | None = None
    checkpoint_every_steps: Positive | None = Field(
        default=None, description="Checkpoints within an epoch too; none: at its end alone."
    )
    keep_checkpoints: Positive = Field(
        default=2, description="The newest that are kept; the best epoch's is kept beside them."
    )
    max_bad_steps: Positive = Field(
        default=10,
        description="Steps in a row without a finite loss and gradient, each skipped, after which "
        "the job goes back to its last checkpoint.",
    )
    max_rollbacks: int = Field(default=2, ge=0, description="Times it may go back; then it fails.")

    @model_validator(mode="after")
    def _rates_and_warmup_fit(self) -> TrainConfig:
        if self.micro_batch is not None and self.accumulate > 1:
            raise ValueError(
                f"micro_batch {self.micro_batch} and accumulate {self.accumulate} say the same "
                "thing: give one of them"
            )
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr:g} is above lr {self.lr:g}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} leaves nothing of {self.epochs} epochs"
            )
        return self

    zero_stage: Literal[0, 1, 2] = 0
    augment: AugmentConfig = AugmentConfig()


class SubNetConfig(StrictModel):
    """One way to run a supernet."""

    schedule: tuple[Positive, ...]
    method: str | None = Field(default=None, description="None: the job's.")


class SandwichConfig(StrictModel):
    """Training one set of weights for all schedules at once (pipelines.train.sandwich)."""

    near: tuple[SubNetConfig, ...] = Field(
        default=(), description="Sub-nets whose neighbours are drawn; none: all are uniform."
    )
    methods: tuple[str, ...] = Field(default=(), description="Drawn from; none: the job's alone.")
    random: Positive = Field(
        default=2, description="Random schedules of each step, beside the dense and the smallest."
    )
    uniform_share: float = Field(
        default=0.2, ge=0, le=1, description="Of the random ones, from anywhere in the space."
    )
    distill_weight: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of the dense sub-net's answer, against the labels, in what the pooled "
        "ones learn from.",
    )
    min_tokens: Positive = 1
    token_step: Positive = 1
    max_gmacs: float | None = Field(default=None, gt=0)


def check_sandwich(train: TrainConfig, schedule: tuple[int, ...] | None = None) -> None:
    """Raises ValueError for what does not go together with a sandwich."""
    if schedule is not None:
        raise ValueError("a sandwich trains all schedules: leave out schedule")
    if train.compile:
        raise ValueError(
            "a sandwich changes the schedule in every pass, so compiling would never end: "
            "set train.compile=false"
        )


class WorkersConfig(StrictModel):
    """The processes of one training job."""

    num_workers: Positive = 1
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)
    threads_per_worker: Positive = Field(default=1, description="Threads torch computes with.")
    max_failures: int = Field(default=3, ge=0, description="Restarts of a job after a worker died.")
    accelerator: str | None = Field(
        default=None,
        description="Type of GPU the workers must have, as Ray calls it (H100, A100, L4 …); none "
        "for any.",
    )

    @model_validator(mode="after")
    def _whole_gpus(self) -> WorkersConfig:
        if self.gpus_per_worker > 1 and self.gpus_per_worker != int(self.gpus_per_worker):
            raise ValueError(
                f"gpus_per_worker {self.gpus_per_worker:g} is neither a share of one GPU nor a "
                "whole number"
            )
        return self


class TrainRunConfig(RunConfig):
    """One training job alone, for `tokenpool train`."""

    width: WidthConfig
    schedule: tuple[Positive, ...] | None = Field(
        default=None, description="Patch tokens kept after each block; none for a dense model."
    )
    method: str = "leader"
    init: Weights | None = Field(
        default=None, description="A saved model, a .safetensors or .pth file, or a timm name."
    )
    sandwich: SandwichConfig | None = Field(
        default=None, description="Train a supernet for all schedules; `schedule` is then none."
    )
    train: TrainConfig
    workers: WorkersConfig = WorkersConfig()

    @model_validator(mode="after")
    def _one_kind_of_model(self) -> TrainRunConfig:
        if self.sandwich is not None:
            check_sandwich(self.train, self.schedule)
        return self
