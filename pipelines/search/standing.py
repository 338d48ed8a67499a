"""Which models of a search are the best so far, and how much of the plane they cover.

A model is a dense base or a trial; those of one width, schedule and method under several seeds
stand together, and their top-1 is the mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.search.state import BaseState, SearchState, TrialState
from tune_spaces import pareto

# Statuses whose top-1 is final. A stopped trial's is not: it had fewer epochs than the others.
FINISHED = ("done",)

Model = BaseState | TrialState


def model_id(model: Model) -> str:
    """What a model is called: the trial's id, or `dense-WIDTH`."""
    return f"dense-{model.width}" if isinstance(model, BaseState) else model.trial_id


def is_finished(model: Model) -> bool:
    """Whether its top-1 is final."""
    return model.status in FINISHED and model.top1_minival is not None


def seed_groups(state: SearchState) -> list[list[TrialState]]:
    """The trials, those of one width, schedule and method together."""
    groups: dict[tuple[object, ...], list[TrialState]] = {}
    for trial in state.trials.values():
        groups.setdefault(trial.candidate.key, []).append(trial)
    return list(groups.values())


def model_groups(state: SearchState) -> list[list[Model]]:
    """Bases and trials, seeds together."""
    bases: list[list[Model]] = [[base] for base in state.bases]
    return bases + [[*trials] for trials in seed_groups(state)]


def cheapest_first(groups: list[list[Model]]) -> list[list[Model]]:
    """Groups of models by what they cost, in the order in which people see them."""
    return sorted(groups, key=lambda group: (group[0].gmacs, model_id(group[0])))


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def finished_points(state: SearchState) -> list[tuple[str, float, float]]:
    """(id, GMACs, top-1 on minival) of all whose top-1 is final, the mean over seeds."""
    found = []
    for group in model_groups(state):
        top1 = mean([model.top1_minival for model in group if is_finished(model)])
        if top1 is not None:
            found.append((model_id(group[0]), group[0].gmacs, top1))
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
        known = [model.top1_minival for model in group if is_finished(model)]
        found += [(group[0].gmacs, top1) for top1 in known[:1] if top1 is not None]
    return found
