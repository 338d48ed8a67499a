"""Stage *finals*: the best screened candidates fine-tuned as Ray Tune trials."""

from __future__ import annotations

from typing import Any

from pipelines.console import Bar
from pipelines.errors import UserError
from pipelines.search.agreement import Agreement, Final, agreement, agreement_text
from pipelines.search.budget import SearchEnded
from pipelines.search.plan import final_job
from pipelines.search.recorder import Recorder
from pipelines.search.stages.companions import companions, is_companion
from pipelines.search.stages.context import StageContext
from pipelines.search.stages.finalists import choose_finalists
from pipelines.search.state import SearchState, TrialState, Weights
from pipelines.train.checkpoint import MODEL_NAME
from pipelines.train.trials import TrialRequest, run_trials, unheard_reports
from tune_spaces.evolution import Scored
from tune_spaces.halving import finals_rungs
from tune_spaces.scheduler import Decision, ParetoHalving


def run_finals(context: StageContext) -> None:
    """Creates the trials once, then runs those that are neither done nor stopped.

    When they are over come the baselines and the further seeds of what is on the front. A trial
    that failed is tried again when the search is typed again.

    Raises:
        UserError: every trial failed.
    """
    state = context.state
    finals = _train_all_finals(context)
    if any(trial.status == "done" for trial in finals):
        for fields in companions(context.config, state):
            if fields["trial_id"] not in state.trials:
                context.recorder.add("trial_created", **fields)
        others = [trial for trial in state.trials.values() if is_companion(trial)]
        _train(context, others, "companions", None)
    counts = {
        status: sum(t.status == status for t in state.trials.values())
        for status in ("done", "stopped", "failed")
    }
    context.screen.say(", ".join(f"{n} {status}" for status, n in counts.items() if n))
    for trial in state.trials.values():
        if trial.status in ("stopped", "failed"):
            context.screen.say(f"{trial.trial_id} {trial.status}: {trial.reason}", style="dim")
    if not counts["done"]:
        raise UserError(
            f"no final was trained to its end ({next(iter(state.trials.values())).reason}): put "
            "that right and type the same command to try them again",
            exit_code=1,
        )
    context.recorder.add("stage_done", stage="finals")


def _train_all_finals(context: StageContext) -> list[TrialState]:
    """Chooses and trains the finals; with supernets in two halves, of which the first tells.

    Where Kendall's τ between the scores on the supernets' weights and what the first half came to
    is too low, the other half is chosen by the scores on the bases' weights and starts from these.
    """
    state, wanted = context.state, context.config.finals.trials
    if not state.rescreened:
        finals = _train_finals(context, choose_finalists(state, wanted), "base")
        _agree(context, "base")
        return finals
    chosen = choose_finalists(state, wanted, "supernet")
    # The most telling ones come first, so the first half is a coarse front.
    half, rest = chosen[: -(-len(chosen) // 2)], chosen[-(-len(chosen) // 2) :]
    _train_finals(context, half, "supernet")
    if _agree(context, "supernet"):
        finals = _train_finals(context, rest, "supernet", len(half))
    else:
        known = {entry.candidate.key for entry in half}
        rest = choose_finalists(state, len(rest), "base", known)
        finals = _train_finals(context, rest, "base", len(half))
    _agree(context, "supernet", again=True)
    return finals


def _train_finals(
    context: StageContext, chosen: list[Scored], weights: Weights, first: int = 0
) -> list[TrialState]:
    """Creates trials, numbered from `first`, and runs all finals that are not over.

    Returns:
        All finals there are.
    """
    _create_trials(context, chosen, weights, first)
    finals = [trial for trial in context.state.trials.values() if not is_companion(trial)]
    _train(context, finals, "finals", _make_scheduler(context, finals))
    return finals


def _agree(context: StageContext, weights: Weights, *, again: bool = False) -> bool:
    """Compares the finals with what screening said of them; whether it is to be trusted.

    That is decided once, the first time: a search that is resumed goes by its ledger.
    """
    state, least = context.state, context.config.supernet.min_tau
    if weights in state.agreement and not again:
        return state.agreement[weights].trusted
    found = screening_agreement(state, weights)
    known = state.agreement.get(weights)
    if known is not None and (known.tau, known.pairs, known.bins) == (
        found.tau,
        found.pairs,
        found.bins,
    ):
        return known.trusted  # the search was killed after that was recorded
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
    if not agreed.trusted and not again:
        what = (
            "the other finals start from the bases, chosen by the scores on their weights"
            if weights == "supernet"
            else "scores without training do not order these finals well; supernets may "
            "(supernet.enabled)"
        )
        context.screen.say(f"that is under {least:g}: {what}", style="yellow")
    return agreed.trusted


def screening_agreement(state: SearchState, weights: Weights) -> Agreement:
    """Kendall's τ between screening scores and the finals that started from the same weights."""
    rows = state.rescreened if weights == "supernet" else state.screened
    scores = {(row.width, row.schedule, row.method): -row.loss for row in rows}
    return agreement(
        [
            Final(
                trial.width,
                trial.gmacs,
                scores[key],
                {report["epoch"]: report["top1_minival"] for report in trial.reports},
            )
            for trial in state.trials.values()
            if not is_companion(trial)
            and trial.start == weights
            and (key := (trial.width, trial.schedule, trial.method)) in scores
        ]
    )


def _train(
    context: StageContext, trials: list[TrialState], name: str, scheduler: ParetoHalving | None
) -> None:
    """Runs what is neither done nor stopped; without a scheduler nothing is stopped."""
    config = context.config
    due = [trial for trial in trials if trial.status not in ("done", "stopped")]
    if not due:
        return
    allowed = _within_budget(context, due)
    if allowed:
        _run(context, allowed, name, scheduler)
    context.check()
    if len(allowed) < len(due):
        raise SearchEnded(
            "budget",
            f"budget.trials {config.budget.trials} is reached ({len(due) - len(allowed)} are not "
            "trained)",
        )


def _run(
    context: StageContext, trials: list[TrialState], name: str, scheduler: ParetoHalving | None
) -> None:
    config = context.config
    epochs = config.finals.train.epochs
    with (
        context.room(config.finals.workers, config.finals.max_concurrent, name) as room,
        context.screen.progress(f"{name}, epochs", epochs * len(trials)) as bar,
        context.watch("finals", config.finals.workers.num_workers) as watch,
    ):
        listener = _FinalsListener(context.recorder, epochs, bar)
        if scheduler is not None:
            scheduler.listener = listener.decided
        requests = [_request(context, trial) for trial in trials]
        for request in requests:
            _hear(context, request, listener, scheduler)
        run_trials(
            [r for r in requests if context.state.trials[r.job.job_id].status != "stopped"],
            max_concurrent=room,
            listener=listener,
            directory=config.directory / "tune",
            name=name,
            scheduler=scheduler,
            watch=watch,
        )


def _hear(
    context: StageContext,
    request: TrialRequest,
    listener: _FinalsListener,
    scheduler: ParetoHalving | None,
) -> None:
    """Takes in what a trial reported while there was no driver: it must be judged by that too."""
    trial_id, reports = request.job.job_id, context.state.trials[request.job.job_id].reports
    for report in unheard_reports(request.job, reports):
        verdict = None
        if scheduler is not None:
            verdict = scheduler.report(trial_id, {"gmacs": request.gmacs}, report)
        listener.report(trial_id, report)
        if verdict is not None and not verdict.kept:
            return


def _within_budget(context: StageContext, due: list[TrialState]) -> list[TrialState]:
    """As many of the trials as may be trained: those that were begun, and new ones up to it."""
    limit = context.config.budget.trials
    if limit is None:
        return due
    left = max(0, limit - context.state.trials_begun)
    new = [trial.trial_id for trial in due if trial.status == "pending"][left:]
    return [trial for trial in due if trial.trial_id not in new]


def _create_trials(
    context: StageContext, finalists: list[Scored], weights: Weights, first: int = 0
) -> None:
    """Records the trials that are not recorded yet: a kill may have come between two of them.

    Who the finalists are follows from what was screened, which is complete by now.
    """
    heads = {w.width: w.heads for w in context.config.space.widths}
    if not finalists and not first:
        raise UserError(
            "screening left no schedule that is cheaper than its dense model: lower "
            "space.min_tokens or space.token_step, or raise space.max_gmacs",
            exit_code=1,
        )
    for number, entry in enumerate(finalists, start=first):
        candidate, trial_id = entry.candidate, f"t{number:03d}"
        if trial_id in context.state.trials:
            continue
        context.recorder.add(
            "trial_created",
            trial_id=trial_id,
            width=candidate.width,
            num_heads=heads[candidate.width],
            schedule=list(candidate.schedule),
            method=entry.candidate.method,
            gmacs=candidate.gmacs,
            start=_start(context.state, candidate.width, weights),
        )


def _start(state: SearchState, width: int, weights: Weights) -> Weights:
    """Where a final really starts: from the base where there is no supernet."""
    supernet = state.supernets.get(width)
    return weights if supernet is not None and supernet.status == "done" else "base"


def _request(context: StageContext, trial: TrialState) -> TrialRequest:
    weights = context.state.weights(trial.width, trial.start)
    job = final_job(context.config, trial, weights, context.state.num_classes)
    return TrialRequest(job, trial.gmacs)


def _make_scheduler(context: StageContext, trials: list[TrialState]) -> ParetoHalving:
    """The scheduler, told of what trials did before an interruption."""
    stage = context.config.finals
    scheduler = ParetoHalving(
        "top1_minival",
        costs=["gmacs"],
        rungs=finals_rungs(stage.grace_epochs, stage.train.epochs, stage.reduction_factor),
        reduction_factor=stage.reduction_factor,
        noise=stage.noise_margin,
        trial_key="trial_id",
    )
    for trial in trials:
        if trial.reports:
            scheduler.replay(
                trial.trial_id,
                {"gmacs": trial.gmacs},
                trial.reports,
                stopped=trial.status == "stopped",
            )
    return scheduler


class _FinalsListener:
    def __init__(self, recorder: Recorder, epochs: int, bar: Bar) -> None:
        self._recorder, self._epochs, self._bar = recorder, epochs, bar
        self._stopping: dict[str, str] = {}

    def decided(self, decision: Decision) -> None:
        """The scheduler judged a trial by a report that is handed to `report` right after."""
        if not decision.verdict.kept:
            self._stopping[decision.trial_id] = (
                f"at epoch {decision.rung}: {decision.verdict.reason}"
            )

    def report(self, job_id: str, report: dict[str, Any]) -> None:
        events: list[tuple[str, dict[str, Any]]] = [
            ("trial_report", {"trial_id": job_id, "report": report})
        ]
        if job_id in self._stopping:
            # With the report it came from, and final from here on: Tune takes seconds to end the
            # trial's processes, and a driver killed within them must not start it again.
            stopped = {"trial_id": job_id, "reason": self._stopping[job_id]}
            events.append(("trial_stopped", stopped))
        self._recorder.add_all(events)
        trial = self._recorder.state.trials[job_id]
        self._bar.advance(
            note=f"{job_id} width {trial.width} {trial.gmacs:.4f} GMACs "
            f"top-1 {report['top1_minival']:.1%}"
        )
        if job_id in self._stopping:
            self._bar.advance(self._epochs - report["epoch"])

    def finished(self, job_id: str, report: dict[str, Any], checkpoint: str | None) -> None:
        if job_id in self._stopping:
            return
        if checkpoint is None or report.get("epoch", 0) < self._epochs:
            self.failed(job_id, f"it ended after epoch {report.get('epoch', 0)} without an error")
            return
        self._recorder.add(
            "trial_done",
            trial_id=job_id,
            checkpoint=f"{checkpoint}/{MODEL_NAME}",
            top1_minival=report["top1_minival"],
        )

    def failed(self, job_id: str, reason: str) -> None:
        self._recorder.add("trial_failed", trial_id=job_id, reason=reason)
