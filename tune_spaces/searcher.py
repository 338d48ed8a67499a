"""`FrontSearcher`: hands out candidates where the front is least known, in any Tune experiment."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

from tune_spaces.coverage import CoverageMap
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
        values = np.array([[float(config[name]) for name in costs] or [0.0] for config in flat])
        extent = np.ptp(values, axis=0)
        places = (values - values.min(axis=0)) / np.where(extent > 0, extent, 1.0)
        quality = np.array([float(config[predicted]) for config in flat]) if predicted else None
        ranks = (
            np.zeros(len(flat), dtype=np.int64)
            if quality is None
            else front_ranks(np.column_stack([values, quality]))
        )
        self._map = CoverageMap(places, quality, ranks)
        self._taken: dict[str, int] = {}

    @property
    def num_left(self) -> int:
        """Candidates not handed out yet."""
        return self._map.num_free

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next config, or Tune's FINISHED once all are handed out."""
        if not self._map.num_free:
            return Searcher.FINISHED
        chosen = self._map.most_telling()
        self.mark(trial_id, chosen)
        return dict(self._configs[chosen])

    def mark(self, trial_id: str, candidate: int) -> None:
        """Counts a candidate as handed out, e.g. one that ran before a restart.

        Args:
            trial_id: Of the trial that runs it.
            candidate: Its place in the list given to the constructor.
        """
        self._map.take(candidate)
        self._taken[trial_id] = candidate

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A failed trial taught nothing: its surroundings are unknown again."""
        if error and trial_id in self._taken:
            self._map.forget(self._taken.pop(trial_id))

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
