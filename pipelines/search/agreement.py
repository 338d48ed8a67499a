"""Whether screening told the truth: its scores against what finals of about equal cost came to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.search.state import AgreementState

LEAST_PAIRS = 6
"""Fewer pairs tell nothing: four finals of one bin make as many."""
_PER_BIN = 4


@dataclass(frozen=True)
class Final:
    """A final, and what screening had said of it.

    Attributes:
        group: finals of different groups are not compared: their scores are of different models.
        cost: in GMACs.
        score: without training; more is better.
        results: epoch → top-1.
    """

    group: Hashable
    cost: float
    score: float
    results: Mapping[int, float]


@dataclass(frozen=True)
class Agreement:
    """Kendall's τ_b over pairs of about equal cost.

    Attributes:
        tau: in -1..1; None where nothing differs or nothing can be compared.
        pairs: that were compared.
        bins: of the cost, over all groups.
    """

    tau: float | None
    pairs: int
    bins: int

    def below(self, least: float) -> bool:
        """Whether enough was compared to say that screening is not to be trusted."""
        return self.tau is not None and self.pairs >= LEAST_PAIRS and self.tau < least


def agreement(finals: Sequence[Final], per_bin: int = _PER_BIN) -> Agreement:
    """How well scores order the finals of each bin of the cost.

    Over the whole range of the cost any score looks good, as dearer schedules are better. So only
    finals of one group and one bin are compared, of `per_bin` to twice as many. Of two finals the
    results after the last epoch that both have come to count, as one may have been stopped.
    """
    bins = 0
    pairs: list[tuple[float, float]] = []
    for group in dict.fromkeys(final.group for final in finals):
        own = sorted((f for f in finals if f.group == group), key=lambda final: final.cost)
        parts = np.array_split(np.arange(len(own)), max(1, len(own) // per_bin))
        for part in parts:
            members = [own[i] for i in part]
            found = [
                (a.score - b.score, a.results[epoch] - b.results[epoch])
                for a, b in itertools.combinations(members, 2)
                if (epoch := max(a.results.keys() & b.results.keys(), default=0))
            ]
            bins += bool(found)
            pairs += found
    return Agreement(tau_of_pairs(pairs), len(pairs), bins)


def tau_of_pairs(pairs: Iterable[tuple[float, float]]) -> float | None:
    """Kendall's τ_b from the differences of each pair in the two quantities.

    The share of pairs that both order alike, less that of those they do not; pairs that are equal
    in one of them count by half in the denominator (Kendall, 1945). None where all are equal.
    """
    balance = first = second = 0
    for a, b in pairs:
        balance += (a > 0) == (b > 0) if a and b else 0
        balance -= (a > 0) != (b > 0) if a and b else 0
        first += a != 0
        second += b != 0
    if not first or not second:
        return None
    return balance / math.sqrt(first * second)


def agreement_text(found: AgreementState, weights: str) -> str:
    """One sentence for people."""
    whose = {"base": "the bases'", "supernet": "the supernets'"}[weights]
    if found.tau is None:
        return f"screening on {whose} weights: too few finals of about equal cost to compare"
    return (
        f"Kendall's τ between screening on {whose} weights and the finals, within slices of the "
        f"cost: {found.tau:.2f} ({found.pairs} pairs, {found.bins} slices)"
        + (", too few to judge by" if found.pairs < LEAST_PAIRS else "")
    )
