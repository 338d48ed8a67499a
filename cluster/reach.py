"""Whether the nodes of a cluster reach each other as the workers of a job will have to."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.interfaces import use_interface_of

_CONNECT_SECONDS = 5.0
_GROUP_SECONDS = 45.0
_START_SECONDS = 120.0
_ALL_PAIRS = 32
_LARGEST_GROUP = 64  # every process of a group connects to every other
_NEIGHBOURS = 8


class Peer:
    """An actor on one node that others connect to."""

    def __init__(self) -> None:
        self.address = ray.util.get_node_ip_address()
        self._server = socket.create_server((self.address, 0), backlog=4096)

    def endpoint(self) -> tuple[str, int]:
        """Where it listens."""
        return self.address, int(self._server.getsockname()[1])

    def missing(self, others: list[tuple[str, int]]) -> list[str]:
        """The addresses of those that cannot be reached from here."""
        return [address for address, port in others if not _connects(address, port)]

    def meeting_point(self) -> tuple[str, int]:
        """An address and a port that is free, for the group."""
        with socket.create_server((self.address, 0)) as probe:
            return self.address, int(probe.getsockname()[1])

    def meet(self, address: str, port: int, rank: int, world_size: int, backend: str) -> bool:
        """Joins a process group of one process on each node, and adds up one from each.

        Args:
            address: the address of the meeting point.
            port: the port of the meeting point.
            rank: the number of this process in the group.
            world_size: how many processes the group has.
            backend: "gloo" or "nccl".

        Returns:
            Whether the sum was right.
        """
        use_interface_of(self.address)
        import torch
        import torch.distributed as dist

        os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
        dist.init_process_group(
            backend, rank=rank, world_size=world_size, timeout=timedelta(seconds=_GROUP_SECONDS)
        )
        one = torch.ones(1, device="cuda" if backend == "nccl" else "cpu")
        dist.all_reduce(one)
        total = one.item()
        dist.destroy_process_group()
        return bool(total == world_size)


def _connects(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=_CONNECT_SECONDS):
            return True
    except OSError:
        return False


def unreachable(nodes: Sequence[dict[str, Any]], *, backend: str = "gloo") -> list[str]:
    """What keeps the nodes from working together, each in one line with its remedy.

    First every node connects to every other (to its neighbours in a large cluster) on ports as
    they come, which names the pair that cannot. Then they form a process group, at most 64 of them;
    with the backend nccl each needs a free GPU for it.
    """
    if len(nodes) < 2:
        return []
    options = {"num_cpus": 0, "num_gpus": 1 if backend == "nccl" else 0}
    peers = [
        ray.remote(**options)(Peer)  # type: ignore[call-overload]
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(record["NodeID"], soft=False))
        .remote()
        for record in nodes
    ]
    names = [str(record["NodeManagerAddress"]) for record in nodes]
    try:
        group = slice(0, _LARGEST_GROUP)
        return _blocked(peers, names) or _apart(peers[group], names[group], backend)
    finally:
        for peer in peers:
            ray.kill(peer)


def _blocked(peers: list[Any], names: list[str]) -> list[str]:
    asked = [peer.endpoint.remote() for peer in peers]
    ready, late = ray.wait(asked, num_returns=len(asked), timeout=_START_SECONDS)
    if late:
        name = names[asked.index(late[0])]
        return [f"node {name} did not start a process within {_START_SECONDS:.0f} s"]
    ends = ray.get(ready and asked)
    found = ray.get(
        [peer.missing.remote(_others(ends, number)) for number, peer in enumerate(peers)]
    )
    return [
        f"node {name} cannot reach node {other}: open the ports between the nodes to each other"
        for name, missing in zip(names, found, strict=True)
        for other in missing
    ]


def _others(ends: list[tuple[str, int]], number: int) -> list[tuple[str, int]]:
    rest = ends[number + 1 :] + ends[:number]
    return rest if len(ends) <= _ALL_PAIRS else rest[:_NEIGHBOURS]


def _apart(peers: list[Any], names: list[str], backend: str) -> list[str]:
    """What keeps all nodes together from forming a process group, in one line, if anything does."""
    address, port = ray.get(peers[0].meeting_point.remote())
    met = [
        peer.meet.remote(address, port, rank, len(peers), backend)
        for rank, peer in enumerate(peers)
    ]
    try:
        if all(ray.get(met, timeout=_GROUP_SECONDS + _START_SECONDS)):
            return []
        problem = "the sum over all was wrong"
    except ray.exceptions.GetTimeoutError:
        problem = "it did not come about in time"
    except ray.exceptions.RayError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        problem = lines[-1].strip()[:200] if lines else type(error).__name__
    return [
        f"the nodes {', '.join(names[:8])} cannot form a {backend} process group ({problem}): "
        "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME on each node to the interface of its Ray "
        "address, and open all ports between them"
    ]
