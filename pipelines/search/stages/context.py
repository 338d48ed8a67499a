"""What every stage is given."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from cluster.capacity import Room
from cluster.session import Cluster, ClusterError
from pipelines.config import SearchConfig, WorkersConfig
from pipelines.console import Screen
from pipelines.errors import UserError
from pipelines.search.halt import DeviceMeter, Halt
from pipelines.search.ledger import Event, read_events
from pipelines.search.recorder import Recorder
from pipelines.search.search_space import make_space
from pipelines.search.state import SearchState
from pipelines.train.reports import NO_ROOM, RESTARTED
from pipelines.trials.ray_job import gang_of
from tune_spaces.space import ScheduleSpace

# What actors cost is recorded this often, so that a driver that is killed loses little of it.
_RECORD_SECONDS = 10.0
# A training that is to end gets so long to reach its next report, and with it a checkpoint.
_GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class StageContext:
    """The search, the cluster it runs on, its memory and its user."""

    config: SearchConfig
    cluster: Cluster
    recorder: Recorder
    screen: Screen
    halt: Halt | None = None
    meter: DeviceMeter = field(default_factory=DeviceMeter)
    _metered: dict[str, float] = field(default_factory=dict)

    @property
    def state(self) -> SearchState:
        """What is known so far."""
        return self.recorder.state

    def events(self) -> Iterator[Event]:
        """All that the ledger has recorded, in order."""
        return read_events(self.config.search.ledger)

    @property
    def space(self) -> ScheduleSpace:
        """What is searched, within all its bounds.

        Raises:
            UserError: no schedule is within them.
        """
        return make_space(self.config, self.state.num_classes, self.state.latency_tables)

    @contextmanager
    def room(self, workers: WorkersConfig, wanted: int | None, name: str) -> Iterator[Room]:
        """Tells how many jobs may run at once so that none waits for another's workers.

        It looks at the cluster as it is when it is asked.

        Args:
            workers: of each job.
            wanted: jobs at once at most; None for as many as fit.
            name: of the work.

        Raises:
            UserError: the cluster cannot hold one.
        """
        gang = gang_of(workers)
        self.fits(gang.num_workers, gang.cpus, gang.gpus, gang.accelerator)
        room = Room(gang, wanted, name, say=partial(self.screen.say, style="yellow"))
        try:
            yield room
        finally:
            room.close()

    def fits(
        self, num_processes: int, cpus: float, gpus: float, accelerator: str | None = None
    ) -> int:
        """How many groups of processes, each with so many CPUs and GPUs, fit side by side.

        Raises:
            UserError: the cluster cannot hold one.
        """
        try:
            return self.cluster.concurrent_jobs(num_processes, cpus, gpus, accelerator)
        except ClusterError as error:
            raise UserError(str(error)) from None

    def check(self) -> None:
        """To be called between two pieces of work.

        Raises:
            SearchEnded: the search must end now.
        """
        for stage in self._metered:
            if time.monotonic() - self._metered[stage] > _RECORD_SECONDS:
                self._metered[stage] = time.monotonic()
                self.spent(stage, self.meter.take(stage))
        if self.halt is not None:
            self.halt.check()

    @contextmanager
    def metered(self, stage: str, devices: float) -> Iterator[None]:
        """Counts so many devices as in use by a stage for as long as the block runs."""
        self.meter.start(stage, devices)
        self._metered[stage] = time.monotonic()
        try:
            yield
        finally:
            del self._metered[stage]
            self.spent(stage, self.meter.end(stage))

    def spent(self, stage: str, device_seconds: float) -> None:
        """Records what no model's report tells of."""
        if device_seconds > 0:
            self.recorder.add("spent", stage=stage, device_seconds=round(device_seconds, 3))

    def restarted(self, who: str, line: str) -> None:
        """Tells and records that something hung or died, and its work is done again."""
        self.screen.say(line, style="yellow")
        self.recorder.add("restarted", id=who, reason=line)

    @contextmanager
    def watch(self, stage: str, num_workers: int) -> Iterator[TrialWatch]:
        """Watches a stage's trials, each of so many workers, for as long as the block runs."""
        watch = TrialWatch(self, stage, num_workers)
        try:
            yield watch
        finally:
            watch.close()


class TrialWatch:
    """Meters running trials and ends them when the search must end; a `pipelines.train` Watch.

    A trial that is told to end goes on to its next report, so that nothing of it is lost, but for
    half a minute at most.
    """

    def __init__(self, context: StageContext, stage: str, num_workers: int) -> None:
        self._context, self._stage, self._num_workers = context, stage, num_workers
        self._running: set[str] = set()
        self._waiting: set[str] | None = None
        self._hopeless = False

    def started(self, job_id: str) -> None:
        """See `Watch`."""
        self._running.add(job_id)
        self._context.meter.start(job_id, self._num_workers)

    def heard(self, job_id: str) -> None:
        """See `Watch`."""
        self._context.meter.take(job_id)
        if self._waiting is not None:
            self._waiting.discard(job_id)

    def told(self, job_id: str, notice: str, line: str) -> None:
        """See `Watch`."""
        if notice == RESTARTED:
            self._context.restarted(job_id, line)
        elif notice == NO_ROOM and self._context.halt is not None:
            self._context.halt.request(line)
        else:
            self._context.screen.say(line, style="yellow")

    def over(self, job_id: str) -> None:
        """See `Watch`."""
        self._running.discard(job_id)
        self._context.meter.end(job_id)
        if self._waiting is not None:
            self._waiting.discard(job_id)

    def give_up(self) -> None:
        """Ends all trials at once: what one of them came to makes the others vain."""
        self._hopeless = True

    @property
    def ending(self) -> bool:
        """See `Watch`."""
        if self._hopeless:
            return True
        halt = self._context.halt
        if halt is None or halt.ended is None:
            return False
        if self._waiting is None:
            self._waiting = set(self._running)
            running = ", ".join(sorted(self._running))
            where = f": {running} may come to the next checkpoint" if running else ""
            self._context.screen.say(f"{halt.ended}{where}", style="yellow")
        return True

    @property
    def now(self) -> bool:
        """See `Watch`."""
        halt = self._context.halt
        if self._hopeless:
            return True
        if not self.ending or halt is None:
            return False
        return not self._waiting or halt.seconds > _GRACE_SECONDS

    def close(self) -> None:
        """Records what trials that were cut short have cost since their last reports."""
        for job_id in sorted(self._running):
            self._context.spent(self._stage, self._context.meter.end(job_id))
        self._running.clear()
