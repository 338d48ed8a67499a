"""A training job under Ray Train, and the Tune trial that runs it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from cluster import ray_private
from cluster.placement import Gang, fit
from pipelines.secrecy.guard import clean_errors, guard_process
from pipelines.train.imports import without_collector
from pipelines.train.reports import NO_ROOM, NOTICE, NOTICE_LINE, RESTARTED, WAITS
from pipelines.train.spec import TrainJob
from pipelines.trials.job_failures import failure_of
from pipelines.trials.waits import RoomWait, StorageWait

if TYPE_CHECKING:
    from pipelines.config import WorkersConfig
    from pipelines.trials.trainer import JobTrainer

logger = logging.getLogger(__name__)

# A trial's driver only waits; this share of a node keeps it from being free without limit.
_DRIVER_SHARE = 0.001
# Seconds until a job that could not write to a full disk is started again.
_DISK_PAUSE = 20.0
# Times in a row that Ray looks for room before the cluster is looked at here.
CONTROLLER_FAILURES = 3


def driver_resources() -> dict[str, float]:
    """What a trial's driver asks for: a sliver of the node that this process runs on.

    There a trial's controller runs too. So a node that dies takes workers with it, which the
    driver starts again, and never the driver.
    """
    import ray

    return {"CPU": 0.0, f"node:{ray.util.get_node_ip_address()}": _DRIVER_SHARE}


def gang_of(workers: WorkersConfig) -> Gang:
    """A job's workers, for the rules of placement."""
    return Gang(
        workers.num_workers, workers.cpus_per_worker, workers.gpus_per_worker, workers.accelerator
    )


@clean_errors()
def train_worker(job: dict[str, Any]) -> None:
    """What each worker of a job runs.

    Raises:
        UserError: what only a person can put right.
    """
    started = time.monotonic()
    with without_collector():
        from pipelines.train.life_signs import OVER, signs
        from pipelines.train.loop import run_job
        from pipelines.trials.ray_reporter import RayReporter

    logging.basicConfig(level=logging.INFO)
    guard_process()
    spec = TrainJob.model_validate(job)
    if spec.workers.gpus_per_worker:
        import torch
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
    run_job(spec, RayReporter(spec.folder), started)
    signs.begin(OVER)


def run_trainer(job: TrainJob) -> None:
    """Runs a job to its end inside a Tune trial, which receives its reports.

    A job that ran before under the same storage and id goes on from its newest checkpoint. So it
    does after a worker died, as often as it may; a bug, and an error that only a person can put
    right, would come again and ends it at once. Where there is no room for its workers, as after
    nodes have left, it waits and has lost nothing.

    Raises:
        ray.train.TrainingFailedError: the job failed for good.
        RuntimeError: so it did, in the words of this program.
    """
    from ray.exceptions import ActorDiedError, OutOfMemoryError
    from ray.train import TrainingFailedError

    from pipelines.trials.ray_record import mend_record

    attempt, first = 0, True  # a driver has just read what an earlier one had not heard
    room = RoomWait(f"{job.job_id} ({_needs(job.workers)})")
    storage = StorageWait(job.full_disk_minutes, lambda: _newest_stored(job))
    while True:
        begun = time.monotonic()
        try:
            if job.store is None:
                mend_record(job.directory, heard=first)
                first = False
            _make_trainer(job).fit()
            return
        except (TrainingFailedError, ActorDiedError, OutOfMemoryError, OSError) as error:
            failure = failure_of(error, job.address)
            if failure.kind == "room":
                if line := room.goes_on(begun, _could_hold(job)):
                    _tell(WAITS, line)
                continue
            room.over()
            if failure.kind == "drained":
                _tell(RESTARTED, f"{failure.text}: goes on elsewhere, from where it was")
                continue
            if failure.kind == "taken":
                _tell(RESTARTED, f"{job.job_id}: {failure.text}: goes on from its last checkpoint")
                continue
            if failure.kind == "disk" and storage.goes_on(begun):
                again = "tried again from its last checkpoint"
                _tell(WAITS, f"{job.job_id}: {failure.text}: {again}")
                time.sleep(_DISK_PAUSE)
                continue
            if failure.kind in ("disk", "no disk"):
                _tell(NO_ROOM, f"{job.job_id}: {failure.text}")
                raise RuntimeError(failure.text) from None
            if failure.kind == "bug":
                raise RuntimeError(failure.text) from None
            most = job.workers.max_failures
            if failure.kind == "person" or attempt == most:
                if failure.text:
                    raise RuntimeError(f"{failure.text}, after {attempt} restarts") from None
                raise
            logger.warning("%s failed and is started again: %s", job.job_id, error)
            attempt += 1
            why = failure.text or _death(error)
            why = why if failure.kind == "stall" else f"{job.job_id}: {why}"
            again = f"goes on from its last checkpoint (restart {attempt} of {most})"
            _tell(RESTARTED, f"{why}: {again}")


def _tell(notice: str, line: str) -> None:
    """Tells the search's driver, and so its user, in the way that reports go."""
    from ray import tune

    # Tune takes no report without its time attribute.
    tune.report({NOTICE: notice, NOTICE_LINE: line, "epoch": 0})


def _death(error: Exception) -> str:
    from pipelines.trials.run_trials import short_reason

    return short_reason(error)


def _needs(workers: WorkersConfig) -> str:
    gpus = f" and {workers.gpus_per_worker:g} GPU" if workers.gpus_per_worker else ""
    return f"{workers.num_workers} workers of {workers.cpus_per_worker:g} CPU{gpus}"


def _newest_stored(job: TrainJob) -> str | None:
    """The name of the newest checkpoint, "" where there is none; None where the store is away."""
    from pipelines.storage.store import ObjectStore, StoreAway

    if job.address is None:
        names = [path.name for path in job.directory.glob("epoch-*")]
    else:
        try:
            names = [n for n in ObjectStore(job.address).folders() if n.startswith("epoch-")]
        except StoreAway:
            return None
    return max(names, default="")


def _could_hold(job: TrainJob) -> bool:
    """Whether the cluster as it is now would hold the job if nobody else were on it."""
    from cluster.capacity import present_nodes

    return fit(present_nodes(), gang_of(job.workers)).jobs > 0


def _make_trainer(job: TrainJob) -> JobTrainer:
    # Nothing here imports torch: neither this process nor the controller's ever computes.
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.tune.integration.ray_train import TuneReportCallback

    from cluster.capacity import present_nodes
    from pipelines.trials.process_group import ProcessGroupConfig
    from pipelines.trials.stall_callback import StallCallback
    from pipelines.trials.trainer import JobTrainer

    reports = _reports()

    def tell(line: str) -> None:
        reports.put({NOTICE: WAITS, NOTICE_LINE: line, "epoch": 0})

    watched = StallCallback(job.job_id, job.directory, job.stall_minutes, tell)
    workers = job.workers
    resources = {"CPU": workers.cpus_per_worker}
    if workers.gpus_per_worker:
        resources["GPU"] = workers.gpus_per_worker
    return JobTrainer(
        train_worker,
        backend_config=ProcessGroupConfig("nccl" if workers.gpus_per_worker else "gloo"),
        train_loop_config=job.model_dump(mode="json"),
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.gpus_per_worker > 0,
            resources_per_worker=resources,
            placement_strategy=fit(present_nodes(), gang_of(workers)).strategy,
            accelerator_type=workers.accelerator,
        ),
        run_config=RunConfig(
            name=job.job_id,
            **_storage(job),
            callbacks=[
                TuneReportCallback(),  # type: ignore[list-item]
                watched,
            ],
            failure_config=FailureConfig(
                max_failures=0,  # `run_trainer` decides
                controller_failure_limit=CONTROLLER_FAILURES,  # type: ignore[call-arg]
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=job.train.keep_checkpoints),
        ),
    )


def _reports() -> Any:
    """The queue by which reports go to Tune, from wherever they come."""
    return ray_private.get_session()._get_or_create_inter_actor_queue()


def _storage(job: TrainJob) -> dict[str, Any]:
    """Where Ray Train stores what the job reports, as its `RunConfig` wants it."""
    if job.store is None:
        return {"storage_path": str(job.storage.resolve())}
    from pipelines.storage.store import ObjectStore

    store = ObjectStore(job.store)
    return {"storage_path": store.path, "storage_filesystem": store.filesystem}


@clean_errors()
def train_trial(config: dict[str, Any]) -> None:
    """The Tune trainable: `config["job"]` is a `TrainJob` as JSON types."""
    guard_process()
    run_trainer(TrainJob.model_validate(config["job"]))
