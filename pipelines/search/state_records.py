"""What is known of each base, schedule and trial of a search."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.train.reports import Report
from tokenpool.schedule import Schedule
from tune_spaces.candidate import Candidate

Weights = Literal["base", "supernet"]


TrialStatus = Literal["pending", "running", "paused", "done", "stopped", "failed"]


STAGES = ("base", "calibrate", "plan", "screen", "supernet", "rescreen", "finals", "publish")


Measure = Literal["cross-entropy", "divergence", "beside dense"]
"""What a loss without training is: cross-entropy with the labels, the divergence from the dense
model, or the dense model's cross-entropy plus that divergence. The last is what cross-entropy comes
to in the mean where the dense model is right as often as it says, and varies less."""

MEASURE: Measure = "beside dense"
"""What schedules are screened by in searches that begin now (`docs/search-efficiency.md`)."""


CANDIDATE_KEYS = ("width", "schedule", "gmacs", "method")
"""A candidate's in the ledger; its rows have them in this order."""


def candidate_row(candidate: Candidate) -> list[Any]:
    """A candidate as JSON types."""
    return [candidate.width, list(candidate.schedule), candidate.gmacs, candidate.method]


def candidate_fields(candidate: Candidate) -> dict[str, Any]:
    """The same by name."""
    return dict(zip(CANDIDATE_KEYS, candidate_row(candidate), strict=True))


def candidate_of(width: int, schedule: Iterable[int], gmacs: float, method: str) -> Candidate:
    """The candidate of such a row."""
    return Candidate(width, Schedule(schedule), gmacs, method)


@dataclass
class BaseState:
    """A dense model of one width.

    Attributes:
        gmacs: cost of one image in 10⁹ multiply-accumulates.
        top1_minival: fraction in [0, 1]; None until trained.
        top1_val: fraction in [0, 1]; None until published.
        checkpoint: where its weights lie (a `tp.save` path).
        reports: one per epoch.
        device_seconds: workers × seconds spent on it.
        latency_ms: batch size → milliseconds per batch, where measured.
    """

    width: int
    num_heads: int
    gmacs: float
    status: TrialStatus = "pending"
    top1_minival: float | None = None
    top1_val: float | None = None
    checkpoint: str | None = None
    reason: str = ""
    reports: list[Report] = field(default_factory=list)
    device_seconds: float = 0.0
    latency_ms: dict[str, float] | None = None


@dataclass
class Calibration:
    """What was measured on one width's model by one method: the divergence (nats) of each probe.

    Attributes:
        counts: token counts the probes are made of, ascending.
        divergence: mean KL divergence from the dense model of each schedule.
    """

    width: int
    counts: tuple[int, ...]
    divergence: dict[tuple[int, ...], float]


@dataclass
class AgreementState:
    """How well screening scores ordered the finals of equal cost.

    Attributes:
        tau: Kendall's τ_b; None where there is nothing to compare.
        pairs: finals compared two by two.
        bins: slices of the cost they are from, each width's own.
        trusted: when it was first asked, it was not under `supernet.min_tau`, or too little was
            compared to say so.
    """

    tau: float | None
    pairs: int
    bins: int
    trusted: bool


@dataclass
class TrialState:
    """One final: a candidate, fine-tuned from its width's base.

    Attributes are as in `BaseState`; `reason` says why it was stopped or failed. Trials of one
    candidate are repetitions of one model under other seeds.

    Attributes:
        seed: added to the search's seed; None for the first training of a schedule.
        keep_rate: of a baseline that keeps this share of the tokens in every block; else None.
        start: whose weights it starts from: the width's base, or its supernet.
    """

    trial_id: str
    candidate: Candidate
    num_heads: int
    status: TrialStatus = "pending"
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
    def is_companion(self) -> bool:
        """Whether it is no candidate of the search: it is trained to its end, never stopped."""
        return self.seed is not None or self.keep_rate is not None
