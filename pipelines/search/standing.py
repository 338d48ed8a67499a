"""Which models of a search are the best so far, and how much of the plane they cover.

A model is a dense base or a trial; those of one width, schedule and method under several seeds
stand together, and their top-1 is the mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.search.state import Model, SearchState
from tune_spaces import pareto
from tune_spaces.candidate import Key


def seed_groups(state: SearchState) -> list[list[Model]]:
    """The trials, those of one width, schedule and method together."""
    groups: dict[Key, list[Model]] = {}
    for trial in state.trials.values():
        groups.setdefault(trial.candidate.key, []).append(trial)
    return list(groups.values())


def model_groups(state: SearchState) -> list[list[Model]]:
    """Bases and trials, seeds together."""
    return [[base] for base in state.bases] + seed_groups(state)


def cheapest_first(groups: list[list[Model]]) -> list[list[Model]]:
    """Groups of models by what they cost, in the order in which people see them."""
    return sorted(groups, key=lambda group: (group[0].gmacs, group[0].model_id))


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def finished_points(state: SearchState) -> list[tuple[str, float, float]]:
    """(id, GMACs, top-1 on minival) of all whose top-1 is final, the mean over seeds."""
    found = []
    for group in model_groups(state):
        top1 = mean([model.top1_minival for model in group if model.is_finished])
        if top1 is not None:
            found.append((group[0].model_id, group[0].gmacs, top1))
    return found


def front_ids(state: SearchState) -> set[str]:
    """Ids of the finished models that no other beats at no more cost."""
    found = finished_points(state)
    if not found:
        return set()
    values = [(gmacs, top1) for _, gmacs, top1 in found]
    best = {v for v, good in zip(values, pareto.non_dominated(values), strict=True) if good}
    return {name for name, gmacs, top1 in found if (gmacs, top1) in best}


def search_hypervolume(state: SearchState) -> float:
    """Normalised hypervolume of what the search found; 0 while that is nothing.

    Each model counts by its first training alone: a further seed says how sure a figure is, and
    must not make the search look worse. So the hypervolume of a search never falls.
    """
    finished = _first_finished(state)
    reference = max((base.gmacs for base in state.bases), default=0.0)
    if not finished or reference <= 0:
        return 0.0
    return pareto.normalised_hypervolume(finished, reference, chance(state))


def chance(state: SearchState) -> float:
    """Top-1 of guessing."""
    return 1.0 / state.num_classes if state.num_classes else 0.0


def _first_finished(state: SearchState) -> list[tuple[float, float]]:
    """(GMACs, top-1 on minival) of each finished point's first finished training."""
    found: list[tuple[float, float]] = []
    for group in model_groups(state):
        known = [model.top1_minival for model in group if model.is_finished]
        found += [(group[0].gmacs, top1) for top1 in known[:1] if top1 is not None]
    return found
