"""Trains models of a search as Ray Tune trials, whatever they are, and records what they report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pipelines.console import Bar
from pipelines.search.model_record import Model, epochs_of
from pipelines.search.stages.context import StageContext
from pipelines.train.checkpoint import MODEL_NAME
from pipelines.train.reports import Report
from pipelines.train.spec import TrainJob
from pipelines.trials.run_trials import Jobs, run_trials, unheard_reports
from tune_spaces.policy import FrontPolicy


def train_models(
    context: StageContext,
    stage: Literal["base", "supernet", "finals"],
    jobs: Sequence[TrainJob] | Callable[[ModelListener], Jobs],
    *,
    title: str,
    name: str | None = None,
    epochs: int | None = None,
    policy: FrontPolicy | None = None,
    ends_all: Callable[[Model], bool] = lambda model: False,
) -> None:
    """Returns when all are trained to their ends, stopped or failed.

    Args:
        context: of the search.
        stage: whose settings say how many run side by side, and that is charged.
        jobs: the trainings, or what makes them one after the other, given who is told of them.
        title: of the bar.
        name: of the Tune experiment; default the stage's.
        epochs: of all together; default those of the jobs.
        policy: told of every report, and asked whether the trial goes on.
        ends_all: asked of every model that is done, whether the others are vain.

    Raises:
        UserError: the cluster cannot hold one.
        SearchEnded: the search must end now.
    """
    settings: Any = getattr(context.config, stage)
    name = name or stage
    if epochs is None:
        epochs = 0 if callable(jobs) else sum(job.train.epochs for job in jobs)
    with (
        context.room(settings.workers, settings.max_concurrent, name) as room,
        context.screen.progress(title, epochs) as bar,
        context.watch(stage, settings.workers.num_workers) as watch,
    ):

        def done(model: Model) -> None:
            if ends_all(model):
                watch.give_up()

        listener = ModelListener(context, bar, policy, done)
        if not callable(jobs):
            for job in jobs:
                listener.catch_up(job)
        run_trials(
            jobs(listener) if callable(jobs) else jobs,
            max_concurrent=room,
            listener=listener,
            directory=context.config.search.tune,
            name=name,
            watch=watch,
        )
    context.check()


class ModelListener:
    """Records what trainings report, and ends those that the policy stops or lets wait.

    Args:
        context: of the search.
        bar: moved on by each epoch.
        policy: told of every report; None where each model is trained to its end.
        done: called with each model that is.
    """

    def __init__(
        self,
        context: StageContext,
        bar: Bar,
        policy: FrontPolicy | None = None,
        done: Callable[[Model], None] = lambda model: None,
    ) -> None:
        self._context, self._bar, self._policy, self._done = context, bar, policy, done
        # Trials that were told to end and whose processes may still be there.
        self.leaving: set[str] = set()

    def catch_up(self, job: TrainJob) -> bool:
        """Takes in what a training reported while there was no driver; whether it goes on.

        Its last report it will tell again, with its checkpoint.
        """
        for report in unheard_reports(job, self._model(job.job_id).reports):
            if report.epoch < job.train.epochs and not self.report(job.job_id, report):
                self.leaving.discard(job.job_id)  # nothing of it runs
                return False
        return True

    def report(self, job_id: str, report: Report) -> bool:
        """See `Listener`."""
        model, epoch = self._model(job_id), report.epoch
        events = [model.event("report", report=report.to_json())]
        policy = self._policy
        if policy is not None:
            verdict = policy.reported(job_id, epoch, report.top1_minival)
            # With the report it came from, and so from here on: Tune takes seconds to end the
            # trial's processes, and a driver killed within them must not start it again.
            if verdict is not None and not verdict.kept:
                reason = f"at epoch {epoch}: {verdict.reason}"
                events.append(model.event("stopped", reason=reason))
            elif verdict is not None and not policy.goes_on(job_id):
                events.append(model.event("paused"))
        self._context.recorder.add_all(events)
        pooled = report.top1_minival_pooled
        self._bar.advance(
            note=f"{model.model_id} width {model.width} {model.gmacs:.4f} GMACs epoch {epoch} "
            f"top-1 {report.top1_minival:.1%}"
            + (f" dense, {pooled:.1%} pooled" if pooled is not None else "")
        )
        if len(events) == 1:
            return True
        self.leaving.add(job_id)
        if model.status == "stopped":
            self._bar.advance(epochs_of(self._context.config, model) - epoch)
        return False

    def finished(self, job_id: str, report: Report | None, checkpoint: str | None) -> None:
        """See `Listener`."""
        if job_id in self.leaving:
            self.leaving.remove(job_id)
            return
        model, epoch = self._model(job_id), 0 if report is None else report.epoch
        epochs = epochs_of(self._context.config, model)
        if checkpoint is None or report is None or epoch < epochs:
            self.failed(job_id, f"it ended after epoch {epoch} without an error")
            return
        where, top1 = f"{checkpoint}/{MODEL_NAME}", report.top1_minival
        self._context.recorder.add_all([model.event("done", checkpoint=where, top1_minival=top1)])
        if self._policy is not None:
            self._policy.done(job_id)
        self._done(model)

    def failed(self, job_id: str, reason: str) -> None:
        """See `Listener`."""
        self._context.recorder.add_all([self._model(job_id).event("failed", reason=reason)])
        if self._policy is not None:
            self._policy.failed(job_id)

    def _model(self, job_id: str) -> Model:
        return self._context.state.of_job(job_id)
