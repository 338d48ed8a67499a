"""A job's reports and checkpoints through Ray Train, in a folder that all machines share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cluster import ray_private
from pipelines.storage.durable import flush, flush_tree
from pipelines.storage.room import MINUTES
from pipelines.train.checkpoint import (
    checkpoint_folders,
    folder_name,
    is_within_epoch,
    keep_if_best,
    superseded,
)
from pipelines.train.checkpoint_room import part_of_checkpoint
from pipelines.train.reporter import (
    Fence,
    WriteCheckpoint,
    folder_fence,
    newest_undamaged,
    store_checkpoint,
)
from pipelines.train.reports import add_report


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

    Ray merges the files of all ranks into one folder of the shared storage and then commits
    it. The ranks' folders are named by epoch, so those before the newest can be found too.

    Checkpoints within an epoch are written into the same folder but not told to Ray: to Tune each
    would look like a report. `keep` of the epochs' is Ray's `num_to_keep`; the best epoch's is
    kept beside them, because Ray with a score would keep the best and of the newest only one,
    and there would be none to fall back to from a damaged one.

    Args:
        minutes: how long a full disk is waited for.
    """

    def __init__(self, minutes: float = MINUTES) -> None:
        self._suffix, self._minutes = "", minutes
        self.drained: Callable[[], str] | None = drained_nodes

    @property
    def _directory(self) -> Path:
        from ray import train

        return Path(train.get_context().get_storage().experiment_fs_path)

    @cached_property
    def _fence(self) -> Fence:
        return folder_fence(self._directory)

    def newest_checkpoint(self) -> Path | None:
        """See `Reporter`."""
        from ray import train

        if dist.get_rank() == 0:
            self._fence.take()
        folders = checkpoint_folders(self._directory)
        newest = train.get_checkpoint()
        committed: Path | None = None
        if newest is not None:
            with newest.as_directory() as folder:
                committed = Path(folder)
        chosen = newest_undamaged(known_to_ray(folders, committed))
        if committed is not None and (chosen is None or chosen.name < committed.name):
            # Epochs are done again under new names: Ray keeps a list of the old ones, and would
            # delete a folder that is on it twice.
            self._suffix = f"-r{len(folders)}"
        return chosen

    def report(
        self, metrics: dict[str, Any], epoch: int, write: WriteCheckpoint, keep: int
    ) -> None:
        """See `Reporter`."""
        from ray import train

        name = folder_name(epoch) + self._suffix
        with part_of_checkpoint(write, self._directory, self._minutes) as aside:
            if dist.get_rank() == 0:
                self._fence.check()
                # Before the checkpoint is there: after it the epoch may never be done again.
                add_report(self._directory, metrics)
            train.report(
                metrics,
                checkpoint=train.Checkpoint.from_directory(aside),
                checkpoint_dir_name=name,
                checkpoint_upload_fn=self._put,
            )
        dist.barrier()  # all ranks' files are there
        if dist.get_rank() == 0:
            keep_if_best(self._directory, self._directory / name)
            self._delete_superseded(keep)

    def _put(self, checkpoint: Any, name: str) -> Any:
        """Copies a rank's part to its place. Ray would not flush it, and delete those before."""
        from ray import train

        target = self._directory / name
        shutil.copytree(checkpoint.path, target, dirs_exist_ok=True)
        flush_tree(target)
        flush(self._directory)
        return type(checkpoint)(str(target), train.get_context().get_storage().storage_filesystem)

    def save(self, epoch: int, step: int, write: WriteCheckpoint, keep: int) -> None:
        """See `Reporter`."""
        store_checkpoint(
            self._directory, folder_name(epoch, step), write, self._fence, minutes=self._minutes
        )
        if dist.get_rank() == 0:
            self._delete_superseded(keep)
        dist.barrier()

    def _delete_superseded(self, keep: int) -> None:
        for old in superseded(self._directory, keep):
            if is_within_epoch(old):  # the others are Ray's
                shutil.rmtree(old)

    def report_again(self, metrics: dict[str, Any], checkpoint: Path) -> None:
        """See `Reporter`. The checkpoint is stored and must not be stored twice."""
        from ray import train
        from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY

        train.report({**metrics, CHECKPOINT_PATH_KEY: str(checkpoint)})


def known_to_ray(folders: list[Path], committed: Path | None) -> list[Path]:
    """The checkpoints to choose from: what Ray committed, older ones, and the epoch's after it.

    An epoch that Ray did not hear of is done again, with all that came after it, so that its
    report is not lost.
    """
    name = folder_name(0) if committed is None else committed.name
    epoch = name.split("-r")[0]
    return [
        folder
        for folder in folders
        if folder.name <= name or folder.name.startswith(f"{epoch}-step-")
    ]
