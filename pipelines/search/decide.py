"""The policy of a search as its configuration and its ledger make it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipelines.config import SearchConfig
from pipelines.search.ledger import Event
from pipelines.search.old_ledgers import upgraded
from pipelines.search.state import SearchState, Weights, screened_rows
from pipelines.search.state_records import candidate_of
from pipelines.train.reports import Report
from tune_spaces.halving import rung_of
from tune_spaces.outlook import DenseModel, Prices
from tune_spaces.policy import FrontPolicy, PolicySettings
from tune_spaces.space import Candidate, ScheduleSpace

# What is trained in the ten seconds or so until a job's processes are there. It is not measured:
# the same seed is to make the same decisions.
_START_IMAGES = 5000


def policy_of(
    config: SearchConfig,
    state: SearchState,
    space: ScheduleSpace,
    weights: Weights,
    *,
    planned: Iterable[Candidate],
    events: Iterable[Event],
) -> FrontPolicy:
    """A policy that knows what the ledger knows.

    Args:
        config: of the search.
        state: whose bases are there.
        space: what is searched.
        weights: that schedules are scored on.
        planned: what the first generation begins with.
        events: of the ledger, from its beginning.
    """
    policy = FrontPolicy(
        space, _settings(config, state, weights), _dense(state, weights), list(planned)
    )
    for event in events:
        tell(policy, state, weights, event)
    return policy


def tell(policy: FrontPolicy, state: SearchState, weights: Weights, event: Event) -> None:
    """Tells a policy of an event of the ledger, if it is one that decides anything."""
    event = upgraded(event, state.recorded)
    kind, trial = event["event"], state.models.get(event.get("trial_id", ""))
    if kind == "began":
        policy.restarted()
    elif kind in ("generation", "screened") and event["weights"] == weights:
        if kind == "generation":
            policy.asked([candidate_of(*row) for row in event["rows"]])
        else:
            policy.scored(screened_rows(event))
    elif trial is None or trial.is_companion:
        return
    elif kind == "trial_created":
        policy.began(trial.model_id, trial.candidate)
    elif kind == "trial_report":
        report = Report.of(event["report"])
        policy.reported(trial.model_id, report.epoch, report.top1_minival)
    elif kind in _TOLD:
        _TOLD[kind](policy, trial.model_id)


_TOLD: dict[str, Any] = {
    "trial_resumed": FrontPolicy.resumed,
    "trial_paused": FrontPolicy.paused,
    "trial_stopped": FrontPolicy.stopped,
    "trial_done": FrontPolicy.done,
    "trial_failed": FrontPolicy.failed,
}


def _settings(config: SearchConfig, state: SearchState, weights: Weights) -> PolicySettings:
    """With supernets, schedules are scored on the bases' weights only to make these."""
    finals, supernet = config.finals, config.supernet
    scored = supernet if weights == "supernet" else config.screen
    trains = weights == "supernet" or not supernet.enabled or state.stages["rescreen"] == "done"
    limit = finals.trials if config.budget.trials is None else config.budget.trials
    epochs = finals.train.epochs
    return PolicySettings(
        schedules=scored.schedules,
        generations=scored.generations,
        trials=min(finals.trials, limit) if trains else 0,
        rounds=finals.rounds if trains else 1,
        prices=Prices(
            first=rung_of(finals.grace_epochs, epochs),
            last=epochs,
            # Unknown of a search that an old program began; then only the ratio of steps is off.
            images=state.images.get("train", 1000),
            measured=state.images.get("minival", 100),
            floor=1 / state.num_classes,
            start=3.0 * _START_IMAGES,
            log_cost=finals.log_cost,
        ),
        keep=1 / finals.reduction_factor,
        noise=finals.noise_margin,
        seed=config.seed,
    )


def _dense(state: SearchState, weights: Weights) -> list[DenseModel]:
    found = []
    for base in state.bases:
        top1 = base.top1_minival or 0.0
        supernet = state.supernet(base.width).top1_minival
        untrained = top1 if weights == "base" or supernet is None else supernet
        found.append(DenseModel(base.width, base.gmacs, top1, untrained))
    return found
