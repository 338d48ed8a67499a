"""Ends a job's run when one of its workers gives no sign of life; in Ray Train's controller.

Ray notices a worker whose process is gone, not one that hangs in its loader or in a collective. So
the controller asks each for its last sign (`life_signs`) every few seconds. The answer comes from
another thread of the worker than the one that works: a process that is stopped gives none. What
is found is also written down beside the job, for `tokenpool status`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import WorkerGroupError

from cluster import ray_private
from pipelines.train.life_signs import Sign, read_sign
from pipelines.trials.last_signs import LastSign, forget_last_signs, write_last_signs
from pipelines.trials.stall_watch import Stall, StallWatch

logger = logging.getLogger(__name__)


class WorkerStalled(Exception):
    """A worker gave no sign of life; the text says which and where it stood."""


class StallCallback(ray_private.WorkerGroupCallback):
    """Watches the workers of one job over all its worker groups.

    Args:
        job_id: names the job.
        directory: its folder on the driver's machine, which is the controller's.
        minutes: see `StallWatch`.
        tell: given a line for the user where a worker waits for something, and where no more.
    """

    def __init__(
        self, job_id: str, directory: Path, minutes: float | None, tell: Callable[[str], None]
    ) -> None:
        self._job_id, self._directory, self._minutes = job_id, directory, minutes
        self._tell = tell
        self._waiting: set[int] = set()
        self._workers: dict[int, Any] = {}
        self._watch: StallWatch | None = None
        self._asked: dict[int, Any] = {}
        self._last: dict[int, LastSign] = {}

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """Begins to watch."""
        self._workers = {
            worker.distributed_context.world_rank: worker for worker in worker_group.get_workers()
        }
        self._watch = StallWatch(self._workers, self._minutes)
        self._asked, self._last = {}, {}

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Looks at the workers when it is time to.

        Raises:
            WorkerGroupError: one has stalled.
        """
        watch = self._watch
        if watch is None or not watch.is_due or worker_group_status.errors:
            return
        stalled = watch.look(self._answers())
        self._write(watch.signs)
        self._tell_who_waits(watch.signs)
        for rank in self._workers.keys() - self._asked.keys():
            self._asked[rank] = self._workers[rank].execute_async(read_sign)
        if stalled:
            self._watch = None
            raise self._end(stalled)

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Watches no longer."""
        self._watch = None
        forget_last_signs(self._directory)

    def _answers(self) -> dict[int, Sign]:
        """Of those who have answered since they were asked."""
        there, _ = (
            ray.wait(list(self._asked.values()), num_returns=len(self._asked), timeout=0)
            if self._asked
            else ([], [])
        )
        found = {}
        for rank in [rank for rank, ref in self._asked.items() if ref in there]:
            try:
                found[rank] = ray.get(self._asked.pop(rank))
            except RayError:  # it is gone: Ray's own poll says so within a moment
                logger.debug("rank %d gives no answer", rank, exc_info=True)
        return found

    def _end(self, stalled: list[Stall]) -> WorkerGroupError:
        """Kills who has stalled, as Ray would wait for them when it ends the others."""
        failures: dict[int, Exception] = {}
        for stall in stalled:
            worker = self._workers[stall.rank]
            host, pid = worker.metadata.hostname, worker.metadata.pid
            ray.kill(worker.actor)
            failures[stall.rank] = WorkerStalled(
                f"{self._job_id} rank {stall.rank} on {host} (pid {pid}): {stall.text}"
            )
        text = "; ".join(str(failure) for failure in failures.values())
        logger.warning("%s", text)
        return WorkerGroupError(text, failures)

    def _tell_who_waits(self, signs: dict[int, Sign]) -> None:
        waiting = {rank for rank, sign in signs.items() if sign.waits}
        for rank in sorted(waiting - self._waiting):
            host = self._workers[rank].metadata.hostname
            self._tell(f"{self._job_id} rank {rank} on {host} waits: {signs[rank].waits}")
        if self._waiting and not waiting:
            self._tell(f"{self._job_id}: there is room again: going on")
        self._waiting = waiting

    def _write(self, signs: dict[int, Sign]) -> None:
        now = time.time()
        for rank, sign in signs.items():
            before = self._last.get(rank)
            if before is None or before.step != sign.step or before.doing != sign.doing:
                moved = before is None or before.step != sign.step
                self._last[rank] = LastSign(
                    rank,
                    self._workers[rank].metadata.hostname,
                    sign.step,
                    sign.doing,
                    now if moved or before is None else before.time,
                )
        write_last_signs(self._directory, list(self._last.values()))
