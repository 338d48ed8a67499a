"""Runs training jobs as Ray Tune trials and hands every report on."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cluster import ray_private
from pipelines.secrecy.guard import redactor
from pipelines.secrecy.redact import is_secret_name
from pipelines.train.reports import NOTICE, NOTICE_LINE, Report
from pipelines.train.spec import TrainJob
from pipelines.trials.ray_job import driver_resources, train_trial
from pipelines.trials.tune_records import Forgetting, write_little

AskRoom = Callable[[int, int], int]

_STARTING = 16
_ERROR_NAME = re.compile(r"^[\w.]*(RuntimeError|UserError): ")


class Listener(Protocol):
    """Told of everything that happens to the trials, in the driver."""

    def report(self, job_id: str, report: Report) -> bool | None:
        """An epoch is done. False ends the job here; its checkpoint stays, and it may go on."""

    def finished(self, job_id: str, report: Report | None, checkpoint: str | None) -> None:
        """A job has run all its epochs, or was ended before by the answer to a report, its last."""

    def failed(self, job_id: str, reason: str) -> None:
        """A job has failed for good."""


class Watch(Protocol):
    """Told which trials run, and asked whether they may go on; in the driver."""

    def started(self, job_id: str) -> None:
        """A trial's processes are there."""

    def heard(self, job_id: str) -> None:
        """A running trial has reported, and its report tells what it has cost so far."""

    def told(self, job_id: str, notice: str, line: str) -> None:
        """A trial has something to say in between: see `reports.NOTICE`."""

    def over(self, job_id: str) -> None:
        """A trial has ended, however."""

    @property
    def ending(self) -> bool:
        """Whether no further trial may start."""

    @property
    def now(self) -> bool:
        """Whether the running ones must end as well, at once."""


class Jobs(Protocol):
    """Where jobs come from, one after the other."""

    def next(self) -> TrainJob | None:
        """The next job, None where there is none now; called only when there is room for one."""

    @property
    def waiting(self) -> int:
        """How many could start now, at most."""


class _List:
    """Jobs that are known from the start."""

    def __init__(self, jobs: Sequence[TrainJob]) -> None:
        self._jobs = deque(jobs)

    def next(self) -> TrainJob | None:
        return self._jobs.popleft() if self._jobs else None

    @property
    def waiting(self) -> int:
        return len(self._jobs)


class _Queue(Searcher):
    """Hands out jobs while there is room.

    Tune's own bound on concurrent trials is fixed when an experiment starts; a cluster is not.
    Where there is no next job, more may come of what runs.
    """

    def __init__(self, jobs: Jobs, room: AskRoom, watch: Watch | None) -> None:
        super().__init__(metric="epoch", mode="max")
        self._jobs: Jobs = jobs
        self._running: set[str] = set()
        self._room, self._watch = room, watch

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_watch": None, "_jobs": None, "_room": None}  # as for `_Events`

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        if self._watch is not None and self._watch.ending:
            return Searcher.FINISHED
        running, waiting = len(self._running), self._jobs.waiting
        if waiting and running >= self._room(running, waiting):
            return None
        job = self._jobs.next() if waiting else None
        if job is None:
            return None if running else Searcher.FINISHED
        self._running.add(trial_id)
        return {"trial_id": job.job_id, "job": job.model_dump(mode="json")}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """There is room again; what is to be learned of it, the listener was told."""
        self._running.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """The ledger is what a search resumes from, not Tune's state."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


class _Reports(FIFOScheduler):
    """Hands every report on; a trial ends at one where the listener says so.

    What is ended so goes on later as another trial of the same job, from its checkpoint. Tune's
    own pause would keep the trial's place among those that run.
    """

    def __init__(self, listener: Listener, watch: Watch | None) -> None:
        super().__init__()
        self._listener: Listener | None = listener
        self._watch = watch

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_listener": None, "_watch": None}  # as for `_Events`

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        # At its end a trial's last report comes once more, marked as done.
        if result.get("done"):
            return TrialScheduler.CONTINUE
        if NOTICE in result and self._watch is not None:
            job_id = trial.config["trial_id"]
            self._watch.told(job_id, result[NOTICE], result[NOTICE_LINE])
        report = _report_of(result)
        if report is None:
            return TrialScheduler.CONTINUE
        if self._listener is None:
            raise RuntimeError("a search resumes from its ledger, not from Tune's own state")
        if self._watch is not None:
            self._watch.heard(trial.config["trial_id"])
        goes_on = self._listener.report(trial.config["trial_id"], report)
        return TrialScheduler.STOP if goes_on is False else TrialScheduler.CONTINUE


class _WatchStopper(tune.Stopper):
    """Ends the experiment when the watch says so; a trial that is ended so is told to nobody."""

    def __init__(self, watch: Watch | None) -> None:
        self._watch = watch

    def __getstate__(self) -> dict[str, Any]:
        return {"_watch": None}  # as for `_Events`

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._watch is not None and self._watch.now


class _Events(Callback):
    def __init__(self, listener: Listener, watch: Watch | None) -> None:
        self._listener: Listener | None = listener
        self._watch = watch

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks to restore from; nothing here is ever restored from that.
        return {"_listener": None, "_watch": None}

    @property
    def _told(self) -> Listener:
        if self._listener is None:
            raise RuntimeError("a search resumes from its ledger, not from Tune's own state")
        return self._listener

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        if self._watch is not None:
            self._watch.started(trial.config["trial_id"])

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        if self._watch is not None:
            self._watch.over(trial.config["trial_id"])
        result = trial.last_result or {}
        self._told.finished(
            trial.config["trial_id"], _report_of(result), result.get("checkpoint_path")
        )

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        if self._watch is not None:
            self._watch.over(trial.config["trial_id"])
        self._told.failed(trial.config["trial_id"], short_reason(_error_of(trial)))


def _error_of(trial: Trial) -> str | BaseException | None:
    """What a trial failed of; it lies with the driver before Tune copies it to the storage."""
    path = trial.error_file
    if path and Path(path).is_file():
        return Path(path).read_text(encoding="utf-8", errors="replace")
    return trial.get_error()


def unheard_reports(job: TrainJob, heard: Sequence[Report]) -> list[Report]:
    """The reports of a job that no driver lived to hear.

    Args:
        job: the job, which does not run now.
        heard: its reports that a driver knows of.
    """
    last = heard[-1].epoch if heard else 0
    return [report for report in job.folder.reports() if report.epoch > last]


def _report_of(result: dict[str, Any]) -> Report | None:
    """A job's report among what Tune says of a trial, which may be a notice, or nothing yet."""
    return None if NOTICE in result or "epoch" not in result else Report.of(result)


def short_reason(error: str | BaseException | None) -> str:
    """The line of a Ray error that says what went wrong, without the frames around it."""
    if error is None:
        return "unknown"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line.split(":")[0] and ": " in line]
    line = telling[-1] if telling else (lines[-1] if lines else type(error).__name__)
    return redactor().text(_ERROR_NAME.sub("", line))


def _always(most: int) -> AskRoom:
    return lambda running, waiting: most


def run_trials(
    jobs: Sequence[TrainJob] | Jobs,
    *,
    max_concurrent: int | AskRoom,
    listener: Listener,
    directory: Path,
    name: str,
    watch: Watch | None = None,
) -> None:
    """Runs jobs to their end, or until the listener ends them; returns when all are over.

    So it does when the watch has called for the end; what was running then, the listener has
    heard the last of with its last report.

    Args:
        jobs: the jobs in the order they start, or where they come from.
        max_concurrent: jobs at a time; their workers must fit the cluster all together. Or what
            tells how many may run now, given how many run and how many wait.
        listener: told of everything.
        directory: where Tune keeps its own files.
        name: of the Tune experiment.
        watch: told what runs, and may end everything; default none.
    """
    # Tune would catch Ctrl-C and end in its own time; the ledger makes that unnecessary.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # Tracebacks of trials that failed; the listener is told why.
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"
    # Tune's own tables; the listener shows progress.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    write_little()
    # Tune would hand the driver's AWS keys to its trials in their runtime_env, which Ray writes to
    # its logs. On one machine they are inherited; the nodes of a cluster have their own.
    passed_on = ray_private.class_cache.ENV_VARS_TO_PROPAGATE
    passed_on.difference_update([name for name in passed_on if is_secret_name(name)])
    # Trials whose drivers may be starting at a time; otherwise one.
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(_STARTING))
    room = max_concurrent if callable(max_concurrent) else _always(max_concurrent)
    source = _List(jobs) if isinstance(jobs, Sequence) else jobs
    tuner = tune.Tuner(
        tune.with_resources(train_trial, driver_resources()),
        tune_config=tune.TuneConfig(
            num_samples=-1,  # the queue says when there are no more
            # Tune 2.60 gives up a trial, whatever failures it is allowed, if the actor that it is
            # to take over from the last one has died: it hears of that twice.
            reuse_actors=False,
            search_alg=_Queue(source, room, watch),
            scheduler=_Reports(listener, watch),
            trial_name_creator=lambda trial: trial.config["trial_id"],
            # A job that was paused has a second trial.
            trial_dirname_creator=lambda trial: f"{trial.config['trial_id']}_{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(directory.resolve()),
            callbacks=[_Events(listener, watch), Forgetting()],
            stop=_WatchStopper(watch),
            verbose=0,
        ),
    )
    tuner.fit()
