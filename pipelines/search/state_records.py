"""What is known of a search beside its models, and how the ledger has a candidate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from tokenpool.schedule import Schedule
from tune_spaces.candidate import Candidate

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
