"""What every stage is given."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.session import Cluster, ClusterError
from pipelines.config import SearchConfig, WorkersConfig
from pipelines.console import Screen
from pipelines.errors import UserError
from pipelines.search.plan import make_space
from pipelines.search.recorder import Recorder
from pipelines.search.state import SearchState
from tune_spaces.space import ScheduleSpace


@dataclass(frozen=True)
class StageContext:
    """The search, the cluster it runs on, its memory and its user."""

    config: SearchConfig
    cluster: Cluster
    recorder: Recorder
    screen: Screen

    @property
    def state(self) -> SearchState:
        """What is known so far."""
        return self.recorder.state

    @property
    def space(self) -> ScheduleSpace:
        """What is searched, within all its bounds.

        Raises:
            UserError: no schedule is within them.
        """
        return make_space(self.config, self.state.num_classes, self.state.latency_tables)

    def concurrency(self, workers: WorkersConfig, wanted: int) -> int:
        """How many jobs may run at once so that none waits for another's workers.

        Raises:
            UserError: the cluster cannot hold one.
        """
        fits = self.fits(workers.num_workers, workers.cpus_per_worker, workers.gpus_per_worker)
        return min(wanted, fits)

    def fits(self, num_processes: int, cpus: float, gpus: float) -> int:
        """How many groups of processes, each with so many CPUs and GPUs, fit side by side.

        Raises:
            UserError: the cluster cannot hold one.
        """
        try:
            return self.cluster.concurrent_jobs(num_processes, cpus, gpus)
        except ClusterError as error:
            raise UserError(str(error)) from None
