"""A model of a search: what it is, what it is called everywhere, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.config import SearchConfig
from pipelines.train.reports import Report
from tokenpool.schedule import Schedule
from tune_spaces.candidate import Candidate

Kind = Literal["dense", "supernet", "final", "constant"]
"""A width's base; its weights for all schedules; a searched schedule; one of constant keep-rate."""

WIDTH_KINDS: tuple[Kind, ...] = ("dense", "supernet")
"""What there is one of for each width."""

Status = Literal["pending", "running", "paused", "done", "stopped", "failed"]

Weights = Literal["base", "supernet"]

# What the ledger's events of a kind begin with, and a training's folder where it has the width.
LEDGER_NAMES = {"dense": "base", "supernet": "supernet", "final": "trial", "constant": "trial"}


@dataclass
class Model:
    """One training of a model.

    Trainings of one candidate under several seeds are repetitions of one model.

    Attributes:
        model_id: `dense-WIDTH`, `supernet-WIDTH`, or the trial's id; its run in MLflow has that
            name.
        candidate: width, schedule, cost of one image, and method; `none` where nothing is pooled.
        top1_minival: fraction in [0, 1]; None until trained.
        top1_val: fraction in [0, 1]; None until published.
        checkpoint: where its weights lie (a `tp.save` path).
        reason: why it was stopped or failed.
        reports: one per epoch.
        latency_ms: batch size → milliseconds per batch, where measured.
        device_seconds: workers × seconds spent on it.
        seed: added to the search's seed; None for the first training of a schedule.
        keep_rate: of a baseline that keeps this share of the tokens in every block; else None.
        start: whose weights a trial starts from: the width's base, or its supernet.
    """

    model_id: str
    kind: Kind
    candidate: Candidate
    num_heads: int
    status: Status = "pending"
    reports: list[Report] = field(default_factory=list)
    top1_minival: float | None = None
    top1_val: float | None = None
    checkpoint: str | None = None
    reason: str = ""
    latency_ms: dict[str, float] | None = None
    device_seconds: float = 0.0
    seed: int | None = None
    keep_rate: float | None = None
    start: Weights = "base"

    @property
    def width(self) -> int:
        """The candidate's."""
        return self.candidate.width

    @property
    def schedule(self) -> Schedule:
        """The candidate's."""
        return self.candidate.schedule

    @property
    def method(self) -> str:
        """The candidate's."""
        return self.candidate.method

    @property
    def gmacs(self) -> float:
        """The candidate's."""
        return self.candidate.gmacs

    @property
    def is_trial(self) -> bool:
        """Whether it is a final, or trained beside them."""
        return self.kind in ("final", "constant")

    @property
    def is_companion(self) -> bool:
        """Whether it is no candidate of the search: it is trained to its end, never stopped."""
        return self.seed is not None or self.keep_rate is not None

    @property
    def is_finished(self) -> bool:
        """Whether its top-1 is final; a stopped one's is not: it had fewer epochs than others."""
        return self.status == "done" and self.top1_minival is not None

    @property
    def epochs(self) -> int:
        """How many it has come to."""
        return self.reports[-1].epoch if self.reports else 0

    @property
    def job_id(self) -> str:
        """Names its training job, and that one's folder."""
        return job_id(self.kind, self.width) if not self.is_trial else self.model_id

    @property
    def ledger_key(self) -> dict[str, Any]:
        """What tells in an event's fields that it is about this one."""
        return {"trial_id": self.model_id} if self.is_trial else {"width": self.width}

    def event(self, what: str, **fields: Any) -> tuple[str, dict[str, Any]]:
        """Kind and fields of the ledger's event that tells of its `report`, `done`, `failed` …"""
        return f"{LEDGER_NAMES[self.kind]}_{what}", self.ledger_key | fields


def width_id(kind: Kind, width: int) -> str:
    """What a width's base or supernet is called."""
    return f"{kind}-{width}"


def job_id(kind: Kind, width: int) -> str:
    """Names the training job of a width's base or supernet, and its folder."""
    return f"{LEDGER_NAMES[kind]}-w{width}"


def of_width(kind: Kind, width: int, num_heads: int, gmacs: float, config: SearchConfig) -> Model:
    """A width's base or supernet, of which nothing is known yet."""
    patches = config.model.num_patches(config.data.image_size)
    dense = Candidate(width, Schedule.dense(config.model.depth, patches), gmacs, "none")
    return Model(width_id(kind, width), kind, dense, num_heads)


def epochs_of(config: SearchConfig, model: Model) -> int:
    """How many epochs a model is trained for."""
    if model.is_trial:
        return config.finals.train.epochs
    if model.kind == "supernet":
        return config.supernet.train.epochs if config.supernet.train is not None else 0
    return config.base_epochs(next(w for w in config.space.widths if w.width == model.width))
