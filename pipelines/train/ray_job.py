"""A training job under Ray Train, and the Tune trial that runs it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from pipelines.train.spec import TrainJob

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

logger = logging.getLogger(__name__)

# A trial's driver only waits; this much of a CPU keeps it from being free without limit.
DRIVER_CPUS = 0.01
# A job that cannot be placed must fail with a message instead of trying for ever.
CONTROLLER_FAILURES = 3


def train_worker(job: dict[str, Any]) -> None:
    """What each worker of a `TorchTrainer` runs.

    Raises:
        UserError: what only a person can put right.
    """
    started = time.monotonic()
    from pipelines.train.loop import run_job
    from pipelines.train.reporter import RayReporter

    logging.basicConfig(level=logging.INFO)
    run_job(TrainJob.model_validate(job), RayReporter(), started)


def run_trainer(job: TrainJob) -> None:
    """Runs a job to its end inside a Tune trial, which receives its reports.

    A job that ran before under the same storage and id goes on from its newest checkpoint. So it
    does after a worker died, as often as it may; an error that only a person can put right
    would come again, and ends it at once.

    Raises:
        ray.train.TrainingFailedError: the job failed for good.
    """
    from ray.train import TrainingFailedError

    from pipelines.errors import UserError

    for attempt in range(job.workers.max_failures + 1):
        try:
            _make_trainer(job).fit()
            return
        except TrainingFailedError as error:
            causes = getattr(error, "worker_failures", {}).values()
            needs_a_person = any(isinstance(_root(cause), UserError) for cause in causes)
            if needs_a_person or attempt == job.workers.max_failures:
                raise
            logger.warning("%s failed and is started again: %s", job.job_id, error)


def _root(error: BaseException) -> BaseException:
    """What Ray wrapped: the exception that the worker's own code raised."""
    for name in ("_base_exc", "cause"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return _root(inner)
    return error


def _make_trainer(job: TrainJob) -> TorchTrainer:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from pipelines.train.reporter import CHECKPOINTS_KEPT

    workers = job.workers
    resources = {"CPU": workers.cpus_per_worker}
    if workers.gpus_per_worker:
        resources["GPU"] = workers.gpus_per_worker
    return TorchTrainer(
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
                max_failures=0,  # `run_trainer` decides
                controller_failure_limit=CONTROLLER_FAILURES,  # type: ignore[call-arg]
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
        ),
    )


def train_trial(config: dict[str, Any]) -> None:
    """The Tune trainable: `config["job"]` is a `TrainJob` as JSON types."""
    run_trainer(TrainJob.model_validate(config["job"]))
