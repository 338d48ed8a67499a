"""Hard bounds on what a schedule may cost, known or predicted before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tokenpool import Schedule

Cost = Callable[[int, Schedule], float]
"""`cost(width, schedule)` in GMACs; must not fall when a layer keeps more tokens."""


@dataclass(frozen=True)
class Limit:
    """A hard upper bound on something other than GMACs, known or predicted before training.

    Attributes:
        name: the quantity that is bounded, for messages: "latency_ms", "parameters".
        measure: gives the quantity for a width with a schedule; must not fall with more tokens.
            Where it depends on the method, there is one for each, by name.
        maximum: the most that is allowed.
    """

    name: str
    measure: Cost | Mapping[str, Cost]
    maximum: float

    def of(self, width: int, schedule: Schedule, method: str = "") -> float:
        """The bounded quantity.

        Args:
            width: the embedding width.
            schedule: the patch tokens kept after each block.
            method: how tokens are pooled, where the quantity depends on it.
        """
        measure = self.measure[method] if isinstance(self.measure, Mapping) else self.measure
        return float(measure(width, schedule))

    def allows(self, width: int, schedule: Schedule, method: str = "") -> bool:
        """Whether the bound is kept; arguments as in `of`."""
        return self.of(width, schedule, method) <= self.maximum
