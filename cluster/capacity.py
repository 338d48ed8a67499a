"""What a cluster offers now, and what it is asked to become: nodes come and go while jobs run."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import ray
from ray.autoscaler.sdk import request_resources

from cluster import ray_private
from cluster.placement import Gang, Node, as_node, fit
from cluster.probe import ClusterError

logger = logging.getLogger(__name__)

# A job's driver, its controller and their two helpers take no CPU to speak of, but memory of the
# node that the search runs on: 430 MB together, shared pages counted once (docs/scale.md).
_BYTES_PER_JOB, _SHARE_OF_MEMORY = 450 * 2**20, 0.8
# A driver also asks Ray for 0.001 of that node, and of each node there is 1.
_MOST_DRIVERS = 999
_COORDINATOR = "AutoscalingCoordinator"
_STATUS_OF_V1 = "__autoscaling_status"
_ASK_EVERY, _ASK_FOR = 20.0, 180.0  # seconds
_MOST_BUNDLES = 4096
_UNSAID = 20.0  # seconds without room for anybody, which are not worth a line


def present_nodes() -> list[Node]:
    """The nodes that are alive, and stay: those that are drained take no more work."""
    drained = ray_private.state.get_draining_nodes()
    return [
        as_node(record)
        for record in ray.nodes()
        if record["Alive"] and record["NodeID"] not in drained
    ]


def drivers_that_fit(memory: int) -> int:
    """How many jobs a search's own node can look after with its memory in bytes, at least one."""
    return max(1, min(_MOST_DRIVERS, int(memory * _SHARE_OF_MEMORY) // _BYTES_PER_JOB))


def grows_to(gang: Gang, seconds: float = 20.0) -> bool:
    """Asks the autoscaler for what one job needs, and waits to see whether it brings nodes.

    Where there is none, or it may not bring enough, nothing is on its way and it is asked no more.
    """
    _ask_autoscaler(gang, 1, "probe")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if fit(present_nodes(), gang).jobs or nodes_on_their_way():
            return True
        time.sleep(1.0)
    _ask_autoscaler(gang, 0, "probe")
    return False


def nodes_on_their_way() -> bool:
    """Whether an autoscaler, of either of Ray's kinds, is starting nodes."""
    try:
        found = ray_private.get_cluster_status(ray.get_runtime_context().gcs_address)
        text = ray_private._internal_kv_get(_STATUS_OF_V1)
        report = (json.loads(text) if text else {}).get("autoscaler_report") or {}
    except Exception as error:  # neither is an interface that Ray promises to keep
        logger.warning("the autoscaler cannot be asked whether nodes are on their way: %s", error)
        return False
    if found.pending_launches or found.pending_nodes:
        return True
    return bool(report.get("pending_launches") or report.get("pending_nodes"))


def jobs_that_fit(nodes: Sequence[Node], gang: Gang, *, grows: bool = False) -> int:
    """How many jobs of a gang run side by side without waiting for each other.

    Args:
        nodes: the nodes of the cluster.
        gang: the workers of each job.
        grows: whether the cluster grows until at least one fits.

    Raises:
        ClusterError: if not even one fits.
    """
    jobs = fit(nodes, gang).jobs
    if jobs or grows:
        return max(jobs, 1)
    gpus = f" and {gang.gpus:g} GPU" if gang.gpus else ""
    kind = f" of type {gang.accelerator}" if gang.accelerator else ""
    largest = max(nodes, key=lambda node: (node.gpus, node.cpus), default=Node("", 0.0))
    raise ClusterError(
        f"one job needs {gang.num_workers} workers of {gang.cpus:g} CPU{gpus}{kind} each, but the "
        f"cluster has {sum(n.cpus for n in nodes):g} CPUs and {sum(n.gpus for n in nodes):g} GPUs "
        f"on {len(nodes)} nodes, the largest with {largest.cpus:g} CPUs and {largest.gpus:g} GPUs: "
        "lower workers.num_workers or workers.cpus_per_worker (for screening: "
        "screen.cpus_per_actor)"
    )


@dataclass
class Room:
    """How many jobs may run, asked anew whenever one could start.

    The cluster is looked at again every few seconds, so nodes that join are used and those that
    left are not counted on. Where there is an autoscaler it is told how many jobs wait.

    Attributes:
        gang: the workers of each job.
        wanted: how many jobs may run at a time; None: as many as fit.
        name: what the work is called, for the autoscaler and for people.
        look_every: after how many seconds the cluster is looked at again.
        patience: how many seconds without room for anybody are waited for.
        say: is told once that it waits, and once that it goes on.
        nodes: looks at the cluster.
        clock: tells the time in seconds.
        most_drivers: how many jobs this node can look after.
    """

    gang: Gang
    wanted: int | None = None
    name: str = "jobs"
    look_every: float = 5.0
    patience: float = 1800.0
    say: Callable[[str], None] = logger.warning
    nodes: Callable[[], Sequence[Node]] = present_nodes
    clock: Callable[[], float] = time.monotonic
    most_drivers: int = field(
        default_factory=lambda: drivers_that_fit(ray_private.get_system_memory())
    )
    _jobs: int = field(default=0, init=False)
    _looked: float = field(default=float("-inf"), init=False)
    _asked: float = field(default=float("-inf"), init=False)
    _empty_since: float | None = field(default=None, init=False)
    _said: bool = field(default=False, init=False)

    def __call__(self, running: int, waiting: int) -> int:
        """How many jobs may run at once now, where so many run and so many wait.

        Raises:
            ClusterError: if there has been no room for any for longer than `patience`.
        """
        now = self.clock()
        if now - self._looked >= self.look_every:
            self._jobs, self._looked = fit(self.nodes(), self.gang).jobs, now
        most = min(running + waiting, self.most_drivers)
        if self.wanted is not None:
            most = min(most, self.wanted)
        if most > max(self._jobs, running) and now - self._asked >= _ASK_EVERY:
            self._asked = now
            self._ask(most - running)
        if self._jobs or running:
            if self._said:
                self.say(f"there is room for {self.name} again: going on")
            self._empty_since, self._said = None, False
        else:
            self._empty_since = now if self._empty_since is None else self._empty_since
            if not self._said and now - self._empty_since > _UNSAID:
                self._said = True
                self.say(
                    f"no node has room for {self.name}: waiting, {self.patience / 60:g} minutes at "
                    "most"
                )
            if now - self._empty_since > self.patience:
                raise ClusterError(
                    f"no node has had room for {self.name} for {self.patience / 60:g} minutes: "
                    "look at the cluster, then type the same command to go on"
                )
        return min(most, self._jobs)

    def close(self) -> None:
        """Takes back what was asked of an autoscaler."""
        if self._asked > float("-inf"):
            self._ask(0)

    def _ask(self, jobs: int) -> None:
        _ask_autoscaler(self.gang, jobs, self.name)


def _ask_autoscaler(gang: Gang, jobs: int, name: str) -> None:
    """Asks for room for so many jobs more, or takes back what was asked."""
    # Ray Train's coordinator merges what everybody asks for and would overwrite what it is not
    # told of; jobs that run have told it of themselves. Before the first there is none.
    bundles = [gang.bundle()] * min(jobs * gang.num_workers, _MOST_BUNDLES)
    try:
        coordinator = ray.get_actor(_COORDINATOR, namespace=_COORDINATOR)
    except ValueError:
        request_resources(bundles=bundles)
        return
    requester = f"tokenpool-{name}"
    if jobs:
        coordinator.request_resources.remote(
            requester_id=requester, resources=bundles, expire_after_s=_ASK_FOR
        )
    else:
        coordinator.cancel_request.remote(requester_id=requester)
