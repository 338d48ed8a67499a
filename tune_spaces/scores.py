"""What was scored without training: what of it may be trained, and what is hoped of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tune_spaces.candidate import Key, Untrained
from tune_spaces.evolution import Scored
from tune_spaces.outlook import DenseModel, Outlook, Trained
from tune_spaces.pareto import front_ranks
from tune_spaces.space import Candidate

__all__ = ["Scores"]

# Standard deviations above the mean: what is known least may be best.
_OPTIMISM = 0.5
# Candidates compared at a time: the best by their scores, however many were scored.
_MOST_COMPARED = 2048
_BLOCK = 256


@dataclass
class _Hopes:
    """Top-1 hoped for, as far as it was asked for, at a number of scores and of trainings."""

    known: tuple[int, int]
    candidates: list[Candidate]
    top1: list[float] = field(default_factory=list)


class Scores:
    """Candidates with their scores, in the order they were scored.

    Args:
        outlook: guesses and corrects what candidates come to.
        dense: the dense models.
    """

    def __init__(self, outlook: Outlook, dense: Sequence[DenseModel]) -> None:
        self.rows: list[Untrained] = []
        self._outlook = outlook
        self._dense = {model.width: model for model in dense}
        self._order: tuple[int, list[Candidate], dict[Key, float]] | None = None
        self._hopes: _Hopes | None = None

    def guess(self, candidate: Candidate, otherwise: float | None = None) -> float:
        """Top-1 guessed of a candidate; of one never scored `otherwise`, or its dense model's."""
        dense = self._dense[candidate.width].top1
        return self._ordered()[1].get(candidate.key, dense if otherwise is None else otherwise)

    def expected(self, trained: Sequence[Trained]) -> list[Scored]:
        """Everything scored, with the top-1 expected of it at the rung.

        Before anything was trained, with its cross-entropy, which tells apart more.
        """
        if not trained:
            return [Scored(row.candidate, -row.loss) for row in self.rows]
        candidates, guesses = [row.candidate for row in self.rows], self._ordered()[1]
        expected = self._outlook.expected(candidates, [guesses[c.key] for c in candidates], trained)
        return [Scored(c, value) for c, value in zip(candidates, expected, strict=True)]

    def untried(
        self, trained: Sequence[Trained], begun: set[Key]
    ) -> tuple[list[Candidate], list[float]]:
        """What may be begun, the best by their scores first, and the top-1 hoped for of each.

        Args:
            trained: the trainings that came to the rung.
            begun: the keys of those that did not yet, or never will.
        """
        order, guesses = self._ordered()
        known = len(self.rows), len(trained)
        if self._hopes is None or self._hopes.known != known:
            over = {trial.candidate.key for trial in trained}
            self._hopes = _Hopes(known, [c for c in order if c.key not in over])
        hopes = self._hopes
        wanted = min(_MOST_COMPARED + len(begun), len(hopes.candidates))
        # In blocks that begin where they always do: so a hope is the same to its last bit however
        # often one asked before.
        while len(hopes.top1) < wanted:
            block = hopes.candidates[len(hopes.top1) :][:_BLOCK]
            hopes.top1 += self._outlook.expected(
                block, [guesses[c.key] for c in block], trained, _OPTIMISM
            )
        found = [
            (c, value)
            for c, value in zip(hopes.candidates, hopes.top1, strict=False)
            if c.key not in begun
        ][:_MOST_COMPARED]
        return [c for c, _ in found], [value for _, value in found]

    def _ordered(self) -> tuple[list[Candidate], dict[Key, float]]:
        """What may be trained, the best by their scores first, and what is guessed of everything.

        Dense schedules are left out: they are the dense models. So are those that were dropped
        early, as something cheaper is surely better, unless their width has no others.
        """
        if self._order is None or self._order[0] != len(self.rows):
            whole = {row.candidate.width for row in self.rows if row.whole}
            rows = [
                row
                for row in self.rows
                if row.candidate.gmacs < self._dense[row.candidate.width].gmacs
                and (row.whole or row.candidate.width not in whole)
            ]
            guesses = self._outlook.guesses(self.rows)
            points = [(row.candidate.gmacs, guesses[row.candidate.key]) for row in rows]
            order = np.argsort(front_ranks(points), kind="stable").tolist()
            self._order = len(self.rows), [rows[i].candidate for i in order], guesses
        return self._order[1], self._order[2]
