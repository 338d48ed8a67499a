"""What is trained beside the finals: baselines to compare with, and further seeds of the front."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tokenpool as tp
from pipelines.config import SearchConfig
from pipelines.search.search_space import vit_spec
from pipelines.search.standing import front_ids
from pipelines.search.state import Model, SearchState
from pipelines.search.state_records import candidate_fields
from tune_spaces.space import Candidate


def companions(config: SearchConfig, state: SearchState) -> list[dict[str, Any]]:
    """The `trial_created` fields of all companions, the same whenever it is asked.

    It follows from the finals alone, which are over by now, so a search that was killed amid its
    companions goes on with the same ones.
    """
    finals = {name: trial for name, trial in state.trials.items() if not trial.is_companion}
    own = {name: model for name, model in state.models.items() if not model.is_companion}
    best = front_ids(replace(state, models=own))
    baselines = _constant_rates(config, state, finals)
    repeated = [
        {
            "trial_id": trial.model_id,
            **candidate_fields(trial.candidate),
            "num_heads": trial.num_heads,
            "start": trial.start,
        }
        for trial in sorted(finals.values(), key=lambda trial: (trial.gmacs, trial.model_id))
        if trial.model_id in best
    ]
    return baselines + [
        {**fields, "trial_id": f"{fields['trial_id']}-s{seed}", "seed": seed}
        for fields in baselines + repeated
        for seed in range(1, config.finals.seeds)
    ]


def _constant_rates(
    config: SearchConfig, state: SearchState, finals: dict[str, Model]
) -> list[dict[str, Any]]:
    known = {trial.candidate.key for trial in finals.values()}
    method = _usual_method(config, finals)
    found: list[dict[str, Any]] = []
    for width in config.space.widths:
        spec = vit_spec(config, width, state.num_classes)
        for rate in config.finals.constant_rates:
            schedule = tp.Schedule.constant_rate(spec.depth, spec.patches, rate)
            gmacs = tp.vit_macs(spec, schedule, method).gmacs
            candidate = Candidate(width.width, schedule, gmacs, method)
            if candidate.key in known:
                continue
            found.append(
                {
                    "trial_id": f"c{len(found):03d}",
                    **candidate_fields(candidate),
                    "num_heads": width.heads,
                    "keep_rate": rate,
                }
            )
    return found


def _usual_method(config: SearchConfig, finals: dict[str, Model]) -> str:
    """What most finals pool by: a baseline should lack the schedule alone."""
    methods = [trial.method for trial in finals.values()]
    return max(config.space.all_methods, key=methods.count)
