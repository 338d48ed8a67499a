"""The typed configuration of a search or a training run, and its hash."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cluster.redact import secret_places
from cluster.secrecy import redactor
from pipelines.data.augment_config import AugmentConfig

Positive = Annotated[int, Field(gt=0)]
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"


class StrictModel(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(StrictModel):
    """Where the images come from."""

    path: Path = Field(description="The prepared folder (betons and manifest.json).")
    address: str | None = Field(
        default=None,
        description="Where every machine fetches that folder from, once: any pyarrow or fsspec "
        "address (s3://bucket/imagenet). None: it is there.",
    )
    image_size: Positive = Field(description="Side of the square the model sees, in pixels.")
    loader: Literal["auto", "ffcv", "torchvision"] = "auto"
    loader_threads: Positive = Field(
        default=1, description="Decoding threads of each training worker."
    )


class ModelConfig(StrictModel):
    """The DeiT all widths share."""

    patch_size: Positive = 16
    depth: Positive = 12

    def num_patches(self, image_size: int) -> int:
        """Number of patch tokens of a square image, the class token not counted."""
        return (image_size // self.patch_size) ** 2


class WidthConfig(StrictModel):
    """One feature width and its attention heads."""

    width: Positive
    heads: Positive

    @model_validator(mode="after")
    def _heads_divide_width(self) -> WidthConfig:
        if self.width % self.heads:
            below = self.width // self.heads * self.heads
            above = below + self.heads
            nearest = f"{below} or {above}" if below else str(above)
            raise ValueError(
                f"width {self.width} is not divisible by its {self.heads} heads: use {nearest}"
            )
        return self


class SearchWidthConfig(WidthConfig):
    """A width of a search, with what its base is if it need not be trained."""

    checkpoint: str | None = Field(
        default=None,
        description="A trained dense model: a timm name, a saved model's folder or a file of "
        "weights. It is the base as it is.",
    )


class SpaceConfig(StrictModel):
    """What is searched: widths × monotone schedules × methods with their options."""

    widths: tuple[SearchWidthConfig, ...] = Field(min_length=1)
    method: str | tuple[str, ...] = Field(
        default="wkmedoids",
        min_length=1,
        description="How tokens are pooled, with options: wkmedoids(start=matching). Several: a "
        "list to choose from.",
    )
    min_tokens: Positive = Field(default=1, description="Fewest tokens any layer may keep.")
    token_step: Positive = Field(default=1, description="Token counts are multiples of this.")
    max_gmacs: float | None = Field(
        default=None, gt=0, description="Upper bound on a candidate's GMACs."
    )
    min_gmacs: float = Field(default=0.0, ge=0, description="Lower bound on a candidate's GMACs.")
    max_mparams: float | None = Field(
        default=None, gt=0, description="Upper bound on a model's parameters, in millions."
    )
    max_latency_ms: float | None = Field(
        default=None,
        gt=0,
        description="Upper bound on a forward pass of `latency_batch` images, predicted from "
        "blocks timed on the machine that screens.",
    )
    latency_batch: Positive = Field(default=1, description="Images of that forward pass.")

    @property
    def all_methods(self) -> tuple[str, ...]:
        """The methods to choose from."""
        return (self.method,) if isinstance(self.method, str) else self.method

    @field_validator("method")
    @classmethod
    def _methods_differ(cls, method: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not isinstance(method, str) and len(set(method)) < len(method):
            raise ValueError(f"a method is listed twice: {', '.join(method)}")
        return method

    @field_validator("widths")
    @classmethod
    def _widths_differ(cls, widths: tuple[SearchWidthConfig, ...]) -> tuple[SearchWidthConfig, ...]:
        seen = [w.width for w in widths]
        for width in seen:
            if seen.count(width) > 1:
                raise ValueError(f"width {width} is listed twice")
        return widths


class DistillConfig(StrictModel):
    """Learning from a teacher as well as from the labels."""

    teacher: str = Field(description="A saved model's folder, or the name of a timm model.")
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


class BaseStageConfig(StrictModel):
    """Training one dense model per width."""

    train: TrainConfig
    workers: WorkersConfig = WorkersConfig()
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
        description="Cross-entropy (nats) by which a schedule has to be better than one of the "
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
        description="Kendall's τ between its scores and the first half of the finals under which "
        "the other half starts from the bases.",
    )

    @model_validator(mode="after")
    def _trains(self) -> SupernetStageConfig:
        if self.enabled and self.train is None:
            raise ValueError("an enabled supernet needs train, as the base has it")
        if self.train is not None:
            check_sandwich(self.train)
        return self


class FinalsStageConfig(StrictModel):
    """Fine-tuning the candidates that screening chose, as Ray Tune trials."""

    trials: Positive = 12
    train: TrainConfig
    workers: WorkersConfig = WorkersConfig()
    max_concurrent: Positive | None = Field(
        default=None,
        description="Trials at the same time, at most; none for as many as fit the cluster, also "
        "while it grows or shrinks.",
    )
    grace_epochs: Positive = Field(
        default=1, description="Epochs every trial gets before it may stop."
    )
    reduction_factor: float = Field(default=2.0, gt=1)
    noise_margin: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="Top-1 (as a fraction) a trial may lack and still go on.",
    )
    seeds: Positive = Field(
        default=1, description="Trainings of each final on the front, each under its own seed."
    )
    constant_rates: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(), description="Constant keep-rates trained for each width, to compare with."
    )


class BudgetConfig(StrictModel):
    """What a search may use at most; reaching a limit ends it in order, with the front so far.

    It is no part of what decides a result: a search goes on when it is typed again with more.
    """

    device_hours: float | None = Field(
        default=None, gt=0, description="Workers × hours, over all stages."
    )
    deadline: str | None = Field(
        default=None,
        description="Time at work as 90s, 45m, 8h or 2d, or a point in time: 2026-12-01T08:00.",
    )
    trials: Positive | None = Field(
        default=None, description="Trainings of finals and what is trained beside them."
    )

    @field_validator("deadline", mode="before")
    @classmethod
    def _deadline_is_text(cls, deadline: object) -> object:
        # YAML reads a bare ISO time as a datetime, and a bare number as one.
        if isinstance(deadline, date):
            return deadline.isoformat()
        return str(deadline) if isinstance(deadline, int | float) else deadline

    @model_validator(mode="after")
    def _deadline_can_be_read(self) -> BudgetConfig:
        if self.deadline is not None and self.deadline_seconds is None:
            _ = self.deadline_time
        return self

    @property
    def deadline_seconds(self) -> float | None:
        """The deadline where it is a duration, in seconds."""
        match = _DURATION.fullmatch(self.deadline or "")
        if match is None or float(match[1]) <= 0:
            return None
        return float(match[1]) * _UNITS[match[2]]

    @property
    def deadline_time(self) -> float | None:
        """The deadline where it is a point in time, in seconds since the epoch.

        Without a zone it is the local one.
        """
        if self.deadline is None or self.deadline_seconds is not None:
            return None
        try:
            return datetime.fromisoformat(self.deadline).timestamp()
        except ValueError:
            raise ValueError(
                f"deadline {self.deadline} is neither a duration like 45m or 8h nor a time like "
                "2026-12-01T08:00"
            ) from None


class RunConfig(StrictModel):
    """What a search and a single training run have in common."""

    name: str = Field(pattern=_NAME)
    seed: int = Field(default=0, ge=0, lt=2**31)
    storage: Path = Path("runs")
    data: DataConfig
    model: ModelConfig

    @model_validator(mode="after")
    def _holds_no_secret(self) -> RunConfig:
        # A config is written to the ledger, to MLflow and into every job's description.
        places = secret_places(self.model_dump(mode="json"), redactor())
        if places:
            raise ValueError(
                f"{places[0]} holds a password, token or key: leave it out of the config, which is "
                "written down in many places; storage and servers read theirs from the "
                "environment (AWS_SECRET_ACCESS_KEY, …) or their own credentials files"
            )
        return self


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
        """Where this search keeps its ledger, checkpoints and results."""
        return self.storage / "searches" / self.name

    def resolved(self) -> dict[str, Any]:
        """The whole configuration as plain JSON types."""
        return self.model_dump(mode="json")

    def config_hash(self) -> str:
        """First 12 hex digits of the sha256 over what decides the result (not where it lies)."""
        return config_hash(self.resolved())


def config_hash(resolved: dict[str, Any]) -> str:
    """Hash of what decides a search's result."""
    text = json.dumps(deciding(resolved), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# Of a training job: they change when it is saved and what it does in distress, not its result.
# And how many jobs run side by side, which follows from the cluster.
_SAFEGUARDS = (
    "max_concurrent",
    "micro_batch",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "max_bad_steps",
    "max_rollbacks",
)


def deciding(resolved: dict[str, Any]) -> dict[str, Any]:
    """A resolved config without what only says where things lie, safeguards and the budget."""
    data = {
        key: value
        for key, value in resolved.get("data", {}).items()
        if key not in ("path", "address")
    }
    kept = {key: value for key, value in resolved.items() if key not in ("storage", "budget")}
    kept |= {"data": data}
    return _without_safeguards(kept)


def _without_safeguards(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_safeguards(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in _SAFEGUARDS
    }


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: old → new` for each leaf of two resolved configs that differs."""
    rows: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        name = f"{prefix}{key}"
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            rows += differences(before, after, f"{name}.")
        elif before != after:
            rows.append(f"{name}: {before} → {after}")
    return rows


class TrainRunConfig(RunConfig):
    """One training job alone, for `tokenpool train`."""

    width: WidthConfig
    schedule: tuple[Positive, ...] | None = Field(
        default=None, description="Patch tokens kept after each block; none for a dense model."
    )
    method: str = "wkmedoids"
    init: str | None = Field(
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
