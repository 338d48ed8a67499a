"""One training job alone, on Ray: what `tokenpool train` runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.session import ClusterError, ray_session
from pipelines.config import TrainRunConfig
from pipelines.console import Bar, Screen
from pipelines.errors import UserError
from pipelines.train.checkpoint import MODEL_NAME
from pipelines.train.run_config import job_of
from pipelines.train.trials import TrialRequest, run_trials


def run_alone(config: TrainRunConfig, screen: Screen, address: str | None = None) -> Path:
    """Trains, or goes on training, and returns the folder of the saved model.

    Raises:
        UserError: the cluster is too small, or the job failed.
    """
    job = job_of(config)
    workers = config.workers
    try:
        with (
            ray_session(address) as cluster,
            screen.progress(f"{config.name}, epochs", config.train.epochs) as bar,
        ):
            cluster.concurrent_jobs(
                workers.num_workers, workers.cpus_per_worker, workers.gpus_per_worker
            )
            watcher = _Watcher(bar)
            run_trials(
                [TrialRequest(job, gmacs=0.0)],
                max_concurrent=1,
                listener=watcher,
                directory=config.storage / "trains",
                name="tune",
            )
    except ClusterError as error:
        raise UserError(str(error)) from None
    if watcher.checkpoint is None:
        raise UserError(f"training {config.name} failed: {watcher.reason}", exit_code=1)
    model = Path(watcher.checkpoint) / MODEL_NAME
    screen.say(f"top-1 on minival {watcher.top1:.2%}, model in {model}")
    return model


class _Watcher:
    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self.checkpoint: str | None = None
        self.top1 = 0.0
        self.reason = "it ended without a checkpoint"

    def report(self, job_id: str, report: dict[str, Any]) -> None:
        self.top1 = report["top1_minival"]
        self._bar.advance(
            note=f"epoch {report['epoch']} loss {report['loss']:.3f} lr {report['lr']:.2g} "
            f"{report['images_per_s']:.0f} images/s top-1 {self.top1:.1%}"
        )

    def finished(self, job_id: str, report: dict[str, Any], checkpoint: str | None) -> None:
        self.checkpoint = checkpoint

    def failed(self, job_id: str, reason: str) -> None:
        self.reason = reason
