"""One training job alone, on Ray: what `tokenpool train` runs."""

from __future__ import annotations

import secrets
from pathlib import Path

from cluster.session import ClusterError, ray_session
from pipelines.config import TrainRunConfig
from pipelines.console import Bar, Screen
from pipelines.errors import UserError
from pipelines.storage.copies import local_path
from pipelines.storage.store import ObjectStore
from pipelines.storage.working import open_root
from pipelines.train.checkpoint import MODEL_NAME
from pipelines.train.reports import Report, epoch_line, short_note
from pipelines.train.spec import job_of
from pipelines.train.step_faults import first_micro_batch
from pipelines.trials.run_trials import Watch, run_trials


def run_alone(config: TrainRunConfig, screen: Screen, address: str | None = None) -> Path:
    """Trains, or goes on training, and returns the folder of the saved model, or its copy.

    Raises:
        UserError: the cluster is too small, or the job failed.
    """
    job = job_of(config)
    open_root(config.storage)
    if job.store is not None:
        ObjectStore(job.store).check_writable(f".check-{secrets.token_hex(8)}")
    workers = config.workers
    try:
        with (
            ray_session(address) as cluster,
            screen.progress(f"{config.name}, epochs", config.train.epochs) as bar,
        ):
            cluster.concurrent_jobs(
                workers.num_workers, workers.cpus_per_worker, workers.gpus_per_worker
            )
            share = max(1, config.train.batch_size // workers.num_workers)
            watcher = _Watcher(
                screen, bar, config.train.epochs, first_micro_batch(config.train, share)
            )
            run_trials(
                [job],
                max_concurrent=1,
                listener=watcher,
                directory=config.root / "trains",
                name="tune",
                watch=watcher,
            )
    except ClusterError as error:
        raise UserError(str(error)) from None
    if watcher.checkpoint is None:
        raise UserError(f"training {config.name} failed: {watcher.reason}", exit_code=1)
    folder = job.folder
    for best in folder.bests():
        record = folder.score(best)
        if record is not None and record > watcher.top1:
            place = folder.place(f"{best}/{MODEL_NAME}")
            screen.say(f"the best epoch had {record:.2%}: its model is {place}")
    model = folder.place(f"{Path(watcher.checkpoint).name}/{MODEL_NAME}")
    screen.say(f"top-1 on minival {watcher.top1:.2%}, model in {model}")
    return local_path(model)


class _Watcher(Watch):
    """One line for each epoch, above the bar where there is one; lets the job run."""

    ending = now = False

    def __init__(self, screen: Screen, bar: Bar, epochs: int, micro_batch: int) -> None:
        self._screen, self._bar, self._epochs = screen, bar, epochs
        self._micro_batch = micro_batch
        self._done = 0
        self.checkpoint: str | None = None
        self.top1 = 0.0
        self.reason = "it ended without a checkpoint"

    def report(self, job_id: str, report: Report) -> None:
        self.top1 = report.top1_minival
        size = report.micro_batch or self._micro_batch
        if size < self._micro_batch:
            self._screen.say(
                f"memory ran out: workers compute micro-batches of {size} images, not "
                f"{self._micro_batch}, and batches stay as they are",
                style="yellow",
            )
            self._micro_batch = size
        self._screen.say(epoch_line(report, self._epochs))
        if self._screen.console.is_terminal:
            self._bar.advance(report.epoch - self._done, note=short_note(report))
        self._done = report.epoch

    def finished(self, job_id: str, report: Report | None, checkpoint: str | None) -> None:
        self.checkpoint = checkpoint

    def failed(self, job_id: str, reason: str) -> None:
        self.reason = reason

    def told(self, job_id: str, notice: str, line: str) -> None:
        self._screen.say(line, style="yellow")

    def started(self, job_id: str) -> None:
        return

    heard = over = started
