"""Ray Train's own record of a job's checkpoints, made anew where Ray cannot read it.

Ray writes it in place. A controller that is killed meanwhile, or a power cut, leaves half a file,
and Ray would give the job up for good.
"""

from __future__ import annotations

import logging
from pathlib import Path

from ray.train import CheckpointConfig

from cluster import ray_private
from pipelines.storage.durable import write_durably
from pipelines.train.checkpoint import checkpoint_folders, damage, is_within_epoch, read_progress

logger = logging.getLogger(__name__)

_UNREADABLE = (
    ray_private.CheckpointManagerInitializationError,
    AssertionError,
    LookupError,
    ValueError,
)


def mend_record(directory: Path, heard: bool) -> None:
    """Makes a job's record one that Ray can read; nothing is done where it is, or is not there.

    Args:
        directory: the job's folder, in which no job runs now.
        heard: whether all reports in it are known to the search's driver. If not, the newest
            epoch is left out: its report was perhaps not told, so it is done again.
    """
    directory = directory.resolve()
    if not directory.is_dir():
        return
    place = ray_private.StorageContext(directory.parent, directory.name)
    record = Path(place.checkpoint_manager_snapshot_path)
    if not record.exists():
        return
    try:
        ray_private.CheckpointManager(CheckpointConfig(), place)
    except _UNREADABLE as error:
        logger.warning("%s is made anew: %s", record, error)
        write_durably(record, [_record_of(directory, heard).encode()])


def _record_of(directory: Path, heard: bool) -> str:
    epochs = [
        folder for folder in checkpoint_folders(directory) if not is_within_epoch(folder.name)
    ]
    whole = [folder for folder in epochs if damage(folder) is None]
    known = [folder for folder in whole if heard or folder != epochs[0]] or whole
    results = [
        ray_private._TrainingResultState(
            checkpoint_dir_name=folder.name, metrics=report.to_json() if report else {}
        )
        for folder in reversed(known)
        for report in [read_progress(folder).metrics]
    ]
    record = ray_private._CheckpointManagerState(
        checkpoint_results=results,
        checkpoint_report_indices=list(range(len(results))),
        latest_checkpoint_result=results[-1] if results else None,
        pending_training_results=[],
        pending_validation_specs=[],
        current_report_index=len(results),
        validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[],
        failed_validation_checkpoint_dir_names=[],
    )
    return str(record.json())
