"""`FrontSearcher`: hands out candidates where the front is least known, in any Tune experiment."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

from tune_spaces.pareto import front_ranks


class FrontSearcher(Searcher):
    """Chooses from a pool of configs the one that would tell most about the front.

    What a trial costs is known before it runs, so the front can be explored like a map: next
    comes the candidate farthest, on cost axes scaled to 0..1, from every trial handed out so far,
    divided by 1 + the rank that its predicted quality gives it (0 for candidates that no other
    is expected to dominate). A trial that failed taught nothing, and its place opens again.
    Nothing is random: the same pool and the same results give the same order.

        searcher = FrontSearcher(candidates, costs=["gmacs"], predicted="screened_top1")
        tune.Tuner(train, tune_config=TuneConfig(search_alg=searcher, num_samples=20))

    Args:
        candidates: Configs; each is handed out once.
        costs: Names of costs in the configs, any number; nested names are joined by "/".
        predicted: Name of a quality that is expected of each config, more is better; None where
            nothing is expected.

    Raises:
        ValueError: There are no candidates, or one lacks a cost.
    """

    def __init__(
        self,
        candidates: Sequence[Mapping[str, Any]],
        costs: Sequence[str] = ("gmacs",),
        predicted: str | None = None,
    ) -> None:
        super().__init__()
        if not candidates:
            raise ValueError("a searcher needs at least one candidate")
        self._configs = [dict(config) for config in candidates]
        flat = [flatten_dict(config) for config in self._configs]
        names = [*costs, *([predicted] if predicted else [])]
        for number, config in enumerate(flat):
            missing = [name for name in names if name not in config]
            if missing:
                raise ValueError(f"candidate {number} has no {missing[0]!r}: {sorted(config)}")
        values = np.array([[float(config[name]) for name in costs] for config in flat])
        extent = np.ptp(values, axis=0)
        self._places = (values - values.min(axis=0)) / np.where(extent > 0, extent, 1.0)
        self._quality = np.array([float(config[predicted]) for config in flat] if predicted else [])
        self._ranks = self._rank(values)
        self._free = np.ones(len(flat), dtype=bool)
        self._gaps = np.full(len(flat), np.inf)
        self._taken: dict[str, int] = {}

    @property
    def num_left(self) -> int:
        """Candidates not handed out yet."""
        return int(self._free.sum())

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next config, or Tune's FINISHED once all are handed out."""
        if not self._free.any():
            return Searcher.FINISHED
        chosen = self._most_telling()
        self.mark(trial_id, chosen)
        return dict(self._configs[chosen])

    def mark(self, trial_id: str, candidate: int) -> None:
        """Counts a candidate as handed out, e.g. one that ran before a restart.

        Args:
            trial_id: Of the trial that runs it.
            candidate: Its place in the list given to the constructor.
        """
        self._free[candidate] = False
        self._taken[trial_id] = candidate
        self._gaps = np.minimum(self._gaps, self._distances(candidate))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A failed trial taught nothing: its surroundings are unknown again."""
        if error and trial_id in self._taken:
            del self._taken[trial_id]
            self._gaps = np.full(len(self._configs), np.inf)
            for candidate in self._taken.values():
                self._gaps = np.minimum(self._gaps, self._distances(candidate))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Where to look next does not depend on unfinished trials' qualities."""

    def save(self, checkpoint_path: str) -> None:
        """Writes what was handed out."""
        with open(checkpoint_path, "wb") as file:
            pickle.dump(self.__dict__, file)

    def restore(self, checkpoint_path: str) -> None:
        """Takes the state that `save` wrote."""
        with open(checkpoint_path, "rb") as file:
            self.__dict__.update(pickle.load(file))

    def _most_telling(self) -> int:
        free = np.flatnonzero(self._free)
        if not self._taken:
            # Nothing is known yet: the best that is expected, else the dearest.
            order = self._quality if len(self._quality) else self._places.sum(axis=1)
            return int(free[np.argmax(order[free])])
        value = self._gaps[free] / (1.0 + self._ranks[free])
        # Equal gaps, e.g. several candidates of the same cost: the better expected one.
        tie = self._quality[free] if len(self._quality) else np.zeros(len(free))
        return int(free[np.lexsort((-tie, -np.round(value, 12)))[0]])

    def _distances(self, candidate: int) -> NDArray[np.float64]:
        distances: NDArray[np.float64] = np.linalg.norm(
            self._places - self._places[candidate], axis=1
        )
        return distances

    def _rank(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        if not len(self._quality):
            return np.zeros(len(values), dtype=np.int64)
        return front_ranks(np.column_stack([values, self._quality]))
