"""A job's reports and checkpoints through Ray Train, in a folder or an object store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cluster import ray_private
from pipelines.train.checkpoint import folder_name, is_within_epoch
from pipelines.train.job_folder import JobFolder, WriteCheckpoint
from pipelines.train.reports import Report


def drained_nodes() -> str:
    """The hosts of this worker's job that are drained, by what Ray Train was told; often none."""
    import ray

    info = ray_private.get_train_context().preemption_context.preemption_info
    if info is None:
        return ""
    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    return ", ".join(hosts.get(node, node[:12]) for node in info.preempted_node_ids)


class RayReporter:
    """Checkpoints and reports through Ray Train, which stores them under its run's folder.

    Ray merges the files of all ranks into one folder of the storage and then commits it. The
    ranks' folders are named by epoch, so those before the newest can be found too.

    Checkpoints within an epoch are written into the same folder but not told to Ray: to Tune each
    would look like a report. `keep` of the epochs' is Ray's `num_to_keep`; the best epoch's is
    kept beside them, because Ray with a score would keep the best and of the newest only one,
    and there would be none to fall back to from a damaged one.

    Args:
        folder: the job's, which is Ray's run's.
    """

    def __init__(self, folder: JobFolder) -> None:
        self._folder, self._suffix = folder, ""
        self.drained: Callable[[], str] | None = drained_nodes

    def newest_checkpoint(self) -> Path | None:
        """See `Reporter`."""
        from ray import train

        if dist.get_rank() == 0:
            self._folder.take_over()
        names, newest = self._folder.checkpoints(), train.get_checkpoint()
        committed = None if newest is None else Path(newest.path).name
        chosen = self._folder.newest_undamaged(known_to_ray(names, committed))
        if committed is not None and (chosen is None or chosen.name < committed):
            # Epochs are done again under new names: Ray keeps a list of the old ones, and would
            # delete a folder that is on it twice.
            self._suffix = f"-r{len(names)}"
        return chosen

    def report(self, report: Report, write: WriteCheckpoint, keep: int) -> None:
        """See `Reporter`."""
        from ray import train

        name, folder = folder_name(report.epoch) + self._suffix, self._folder
        with folder.part(write) as part:
            if dist.get_rank() == 0:
                folder.check_writer()
                # Before the checkpoint is there: after it the epoch may never be done again.
                folder.add_report(report)
            train.report(
                report.to_json(),
                checkpoint=train.Checkpoint.from_directory(part),
                checkpoint_dir_name=name,
                checkpoint_upload_fn=self._put,
            )
        dist.barrier()  # all ranks' files are there
        if dist.get_rank() == 0:
            folder.keep_if_best(name, report.top1_minival)
            folder.delete_superseded(keep, only=is_within_epoch)  # the others are Ray's

    def _put(self, checkpoint: Any, name: str) -> Any:
        """Puts a rank's part in its place. Ray would not flush it, and delete those before."""
        from ray import train

        self._folder.put(Path(checkpoint.path), name)
        return type(checkpoint)(_by_ray(name), train.get_context().get_storage().storage_filesystem)

    def save(self, epoch: int, step: int, write: WriteCheckpoint, keep: int) -> None:
        """See `Reporter`."""
        self._folder.save(folder_name(epoch, step), write)
        if dist.get_rank() == 0:
            self._folder.delete_superseded(keep, only=is_within_epoch)
        dist.barrier()

    def report_again(self, report: Report, checkpoint: Path) -> None:
        """See `Reporter`. The checkpoint is stored and must not be stored twice."""
        from ray import train
        from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY

        train.report({**report.to_json(), CHECKPOINT_PATH_KEY: _by_ray(checkpoint.name)})


def _by_ray(name: str) -> str:
    """A checkpoint's path as Ray has it."""
    from ray import train

    return f"{train.get_context().get_storage().experiment_fs_path}/{name}"


def known_to_ray(names: Sequence[str], committed: str | None) -> list[str]:
    """The checkpoints to choose from: what Ray committed, older ones, and the epoch's after it.

    An epoch that Ray did not hear of is done again, with all that came after it, so that its
    report is not lost.

    Args:
        names: of all there are.
        committed: of the newest that Ray knows.
    """
    last = committed or folder_name(0)
    within = f"{last.split('-r')[0]}-step-"
    return [name for name in names if name <= last or name.startswith(within)]
