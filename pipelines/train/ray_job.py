"""A training job under Ray Train, and the Tune trial that runs it."""

from __future__ import annotations

import logging
import time
from typing import Any

from pipelines.train.spec import TrainJob

# A trial's driver only waits; this much of a CPU keeps it from being free without limit.
DRIVER_CPUS = 0.01
# A job that cannot be placed must fail with a message instead of trying for ever.
CONTROLLER_FAILURES = 3


def train_worker(job: dict[str, Any]) -> None:
    """What each worker of a `TorchTrainer` runs.

    Raises:
        RuntimeError: an error that a person can put right, as one line.
    """
    started = time.monotonic()
    from pipelines.errors import UserError
    from pipelines.train.loop import run_job
    from pipelines.train.reporter import RayReporter

    logging.basicConfig(level=logging.INFO)
    try:
        run_job(TrainJob.model_validate(job), RayReporter(), started)
    except UserError as error:
        raise RuntimeError(str(error)) from None


def run_trainer(job: TrainJob) -> None:
    """Runs a job to its end inside a Tune trial, which receives its reports.

    A job that ran before under the same storage and id goes on from its newest checkpoint.

    Raises:
        ray.train.TrainingFailedError: the job failed more often than it may.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from pipelines.train.reporter import CHECKPOINTS_KEPT

    workers = job.workers
    resources = {"CPU": workers.cpus_per_worker}
    if workers.gpus_per_worker:
        resources["GPU"] = workers.gpus_per_worker
    TorchTrainer(
        train_worker,
        train_loop_config=job.model_dump(mode="json"),
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=job.job_id,
            storage_path=str(job.storage.resolve()),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
            failure_config=FailureConfig(
                max_failures=workers.max_failures,
                controller_failure_limit=CONTROLLER_FAILURES,  # type: ignore[call-arg]
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
        ),
    ).fit()


def train_trial(config: dict[str, Any]) -> None:
    """The Tune trainable: `config["job"]` is a `TrainJob` as JSON types."""
    run_trainer(TrainJob.model_validate(config["job"]))
