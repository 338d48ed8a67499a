"""Stage *finals*: the policy's rounds; its trainings are Ray Tune trials that pause at a rung."""

from __future__ import annotations

from functools import partial

from pipelines.errors import UserError
from pipelines.search.agreement import Agreement, Final, agreement, agreement_text
from pipelines.search.halt import SearchEnded
from pipelines.search.job_specs import final_job
from pipelines.search.stages.companions import companions
from pipelines.search.stages.context import StageContext
from pipelines.search.stages.screen_stage import base_policy, score
from pipelines.search.stages.supernet_stage import supernet_policy
from pipelines.search.stages.train_models import ModelListener, train_models
from pipelines.search.state import Model, SearchState, Weights
from pipelines.search.state_records import candidate_fields
from pipelines.train.spec import TrainJob
from tune_spaces.policy import FrontPolicy, Score, Train

_NOT_PROMISING = "its end was not expected to add to the front"


def run_finals(context: StageContext) -> None:
    """Does what the policy says until it says no more; then baselines and further seeds.

    A trial that failed is tried again when the search is typed again.

    Raises:
        UserError: nothing could be trained, or every trial failed.
    """
    state = context.state
    weights: Weights = "supernet" if state.rescreened else "base"
    policy = supernet_policy(context) if weights == "supernet" else base_policy(context)
    while (action := policy.ask()) is not None:
        if isinstance(action, Score):
            score(context, policy, weights)
        else:
            _train_finals(context, policy, weights)
        context.check()
    _check_budget(context)
    for trial_id in policy.paused_trials:
        context.recorder.add("trial_stopped", trial_id=trial_id, reason=_NOT_PROMISING)
    finals = [trial for trial in state.trials.values() if not trial.is_companion]
    if not finals:
        raise UserError(
            "screening left no schedule that is cheaper than its dense model: lower "
            "space.min_tokens or space.token_step, or raise space.max_gmacs",
            exit_code=1,
        )
    _agree(context, weights)
    if any(trial.status == "done" for trial in finals):
        for fields in companions(context.config, state):
            if fields["trial_id"] not in state.trials:
                context.recorder.add("trial_created", **fields)
        _train_companions(context)
    counts = {
        status: sum(t.status == status for t in state.trials.values())
        for status in ("done", "stopped", "failed")
    }
    context.screen.say(", ".join(f"{n} {status}" for status, n in counts.items() if n))
    for trial in state.trials.values():
        if trial.status in ("stopped", "failed"):
            context.screen.say(f"{trial.model_id} {trial.status}: {trial.reason}", style="dim")
    if not counts["done"]:
        raise UserError(
            f"no final was trained to its end ({finals[0].reason}): put "
            "that right and type the same command to try them again",
            exit_code=1,
        )
    context.recorder.add("stage_done", stage="finals")


def _train_finals(context: StageContext, policy: FrontPolicy, weights: Weights) -> None:
    """Runs trials as long as the policy asks for nothing else."""
    train_models(
        context,
        "finals",
        partial(_PolicyJobs, context, policy, weights),
        title="finals, epochs at most",
        epochs=context.config.finals.train.epochs * (policy.num_left or 1),
        policy=policy,
    )


def _train_companions(context: StageContext) -> None:
    """Runs the companions that are not done, as many as the budget allows."""
    trials = [t for t in context.state.trials.values() if t.is_companion and t.status != "done"]
    allowed = _within_budget(context, trials)
    if allowed:
        jobs = [_job(context, trial) for trial in allowed]
        train_models(context, "finals", jobs, title="companions, epochs", name="companions")
    context.check()
    if len(allowed) < len(trials):
        _end_by_budget(context, len(trials) - len(allowed))


class _PolicyJobs:
    """The trials that the policy wants to run next, each recorded before it starts."""

    def __init__(
        self,
        context: StageContext,
        policy: FrontPolicy,
        weights: Weights,
        listener: ModelListener,
    ) -> None:
        self._context, self._policy = context, policy
        self._listener, self._weights = listener, weights
        self._heads = {w.width: w.heads for w in context.config.space.widths}

    @property
    def waiting(self) -> int:
        """See `Jobs`."""
        return max(1, self._policy.num_left) if isinstance(self._policy.ask(), Train) else 0

    def next(self) -> TrainJob | None:
        """See `Jobs`."""
        while isinstance(action := self._policy.ask(), Train):
            if action.trial_id in self._listener.leaving:
                return None
            if action.is_new:
                self._create(action)
            trial = self._context.state.models[action.trial_id]
            job = _job(self._context, trial)
            if action.is_new:
                return job
            if trial.status == "paused":
                self._context.recorder.add_all([trial.event("resumed")])
            self._policy.resumed(action.trial_id)
            if self._listener.catch_up(job):
                return job
        return None

    def _create(self, action: Train) -> None:
        candidate = action.candidate
        self._context.recorder.add(
            "trial_created",
            trial_id=action.trial_id,
            **candidate_fields(candidate),
            num_heads=self._heads[candidate.width],
            start=_start(self._context.state, candidate.width, self._weights),
        )
        self._policy.began(action.trial_id, candidate)


def _agree(context: StageContext, weights: Weights) -> None:
    """Compares the finals with what screening said of them, once."""
    state, least = context.state, context.config.supernet.min_tau
    found = screening_agreement(state, weights)
    known = state.agreement.get(weights)
    if known is None or (known.tau, known.pairs, known.bins) != (
        found.tau,
        found.pairs,
        found.bins,
    ):
        context.recorder.add(
            "agreement",
            weights=weights,
            tau=found.tau,
            pairs=found.pairs,
            bins=found.bins,
            trusted=not found.below(least),
        )
    agreed = state.agreement[weights]
    context.screen.say(agreement_text(agreed, weights))
    if not agreed.trusted:
        what = "" if weights == "supernet" else "; supernets may (supernet.enabled)"
        context.screen.say(
            f"that is under {least:g}: scores without training do not order these finals "
            f"well{what}",
            style="yellow",
        )


def screening_agreement(state: SearchState, weights: Weights) -> Agreement:
    """Kendall's τ between screening scores and the finals that started from the same weights."""
    rows = state.rescreened if weights == "supernet" else state.screened
    scores = {row.candidate.key: -row.loss for row in rows}
    return agreement(
        [
            Final(
                trial.width,
                trial.gmacs,
                scores[key],
                {report.epoch: report.top1_minival for report in trial.reports},
            )
            for trial in state.trials.values()
            if not trial.is_companion
            and trial.start == weights
            and (key := trial.candidate.key) in scores
        ]
    )


def _check_budget(context: StageContext) -> None:
    """Ends the search where the policy wanted no more only because the budget has no more."""
    limit, wanted = context.config.budget.trials, context.config.finals.trials
    if limit is not None and limit < wanted and context.state.trials_begun >= limit:
        _end_by_budget(context, wanted - limit)


def _end_by_budget(context: StageContext, left: int) -> None:
    limit = context.config.budget.trials
    raise SearchEnded("budget", f"budget.trials {limit} is reached ({left} are not trained)")


def _within_budget(context: StageContext, due: list[Model]) -> list[Model]:
    """As many of the trials as may be trained: those that were begun, and new ones up to it."""
    limit = context.config.budget.trials
    if limit is None:
        return due
    left = max(0, limit - context.state.trials_begun)
    new = [trial.model_id for trial in due if trial.status == "pending"][left:]
    return [trial for trial in due if trial.model_id not in new]


def _start(state: SearchState, width: int, weights: Weights) -> Weights:
    """Where a final really starts: from the base where there is no supernet."""
    return weights if state.supernet(width).status == "done" else "base"


def _job(context: StageContext, trial: Model) -> TrainJob:
    weights = context.state.weights(trial.width, trial.start)
    return final_job(context.config, trial, weights, context.state.num_classes)
