"""Stages *supernet* and *rescreen*: weights for all schedules, and screening again with them."""

from __future__ import annotations

from pipelines.console import Bar
from pipelines.search.decide import policy_of
from pipelines.search.job_specs import supernet_job, supernet_job_id
from pipelines.search.recorder import Recorder
from pipelines.search.stages.context import StageContext
from pipelines.search.stages.screen_stage import best_of, score
from pipelines.search.state import SearchState
from pipelines.train.checkpoint import MODEL_NAME
from pipelines.train.reports import Report
from pipelines.trials.run_trials import TrialRequest, run_trials, unheard_reports
from tune_spaces.policy import FrontPolicy
from tune_spaces.space import Candidate


def run_supernet(context: StageContext) -> None:
    """Trains what is missing, from the bases; a width whose supernet fails goes on without one."""
    config, state = context.config, context.state
    stage = config.supernet
    if not stage.enabled or stage.train is None:
        context.screen.say("switched off (supernet.enabled)")
        context.recorder.add("stage_done", stage="supernet")
        return
    widths = [w for w in config.space.widths if w.width in context.space.widths]
    missing = [w for w in widths if state.supernet(w.width).status != "done"]
    if missing:
        epochs = stage.train.epochs
        with (
            context.room(stage.workers, stage.max_concurrent, "supernet") as room,
            context.screen.progress("supernets, epochs", epochs * len(missing)) as bar,
            context.watch("supernet", stage.workers.num_workers) as watch,
        ):
            listener = _SupernetListener(
                context.recorder, {supernet_job_id(w.width): w.width for w in missing}, bar
            )
            requests = [
                TrialRequest(
                    supernet_job(
                        config,
                        width,
                        stage.train,
                        near_front(state, width.width, stage.near),
                        state.weights(width.width, "base"),
                        state.num_classes,
                    ),
                    state.base(width.width).gmacs,
                )
                for width in missing
            ]
            for width, request in zip(missing, requests, strict=True):
                for report in unheard_reports(request.job, state.supernet(width.width).reports):
                    listener.report(request.job.job_id, report)
            run_trials(
                requests,
                max_concurrent=room,
                listener=listener,
                directory=config.directory / "tune",
                name="supernet",
                watch=watch,
            )
        context.check()
    for width in widths:
        context.screen.say(_outcome(state, width.width))
    context.recorder.add("stage_done", stage="supernet")


def run_rescreen(context: StageContext) -> None:
    """Screens again, beginning with what was best on the bases' weights."""
    state = context.state
    widths = [width for width, net in state.supernets.items() if net.status == "done"]
    if not widths:
        context.screen.say("nothing to do: there is no supernet")
    else:
        score(context, supernet_policy(context), "supernet")
    context.recorder.add("stage_done", stage="rescreen")


def supernet_policy(context: StageContext) -> FrontPolicy:
    """The policy of a search that scores schedules on the supernets' weights."""
    config, space = context.config, context.space
    size = -(-config.supernet.schedules // config.supernet.generations)
    share = -(-size // len(space.widths))
    return policy_of(
        config,
        context.state,
        space,
        "supernet",
        planned=[c for width in space.widths for c in near_front(context.state, width, share)],
        events=context.events(),
    )


def near_front(state: SearchState, width: int, count: int) -> list[Candidate]:
    """The best of a width's schedules, by screening on its base's weights."""
    own = [row for row in state.screened if row.candidate.width == width]
    return [entry.candidate for entry in best_of(own, count)]


def _outcome(state: SearchState, width: int) -> str:
    supernet, base = state.supernet(width), state.base(width)
    if supernet.status != "done" or supernet.top1_minival is None or base.top1_minival is None:
        return (
            f"width {width}: no supernet ({supernet.reason or 'it did not finish'}); its finals "
            "start from the base"
        )
    pooled = supernet.reports[-1].top1_minival_pooled if supernet.reports else None
    text = (
        f"width {width}: dense {supernet.top1_minival:.2%} top-1 on minival (its base "
        f"{base.top1_minival:.2%})"
    )
    return text if pooled is None else f"{text}, {pooled:.2%} in the mean of three near the front"


class _SupernetListener:
    def __init__(self, recorder: Recorder, widths: dict[str, int], bar: Bar) -> None:
        self._recorder, self._widths, self._bar = recorder, widths, bar

    def report(self, job_id: str, report: Report) -> None:
        width = self._widths[job_id]
        self._recorder.add("supernet_report", width=width, report=report.to_json())
        self._bar.advance(
            note=f"width {width} epoch {report.epoch} top-1 {report.top1_minival:.1%} dense, "
            f"{report.top1_minival_pooled or 0.0:.1%} pooled"
        )

    def finished(self, job_id: str, report: Report | None, checkpoint: str | None) -> None:
        if checkpoint is None or report is None:
            self.failed(job_id, "it ended without a checkpoint")
            return
        self._recorder.add(
            "supernet_done",
            width=self._widths[job_id],
            checkpoint=f"{checkpoint}/{MODEL_NAME}",
            top1_minival=report.top1_minival,
        )

    def failed(self, job_id: str, reason: str) -> None:
        self._recorder.add("supernet_failed", width=self._widths[job_id], reason=reason)
