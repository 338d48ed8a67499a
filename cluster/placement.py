"""Where the workers of jobs go, and how many jobs fit side by side. Pure rules: no Ray in here.

Ray gives out the workers of a job all together or not at all, and so two jobs never hold a half
each of what both need. What is left to see to: how many jobs may be running so that the next
one always finds room, counted node by node as no worker spans two, and on how few nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Strategy = Literal["STRICT_PACK", "PACK"]

_UNITS = 10_000  # Ray counts resources in whole ten-thousandths
_ACCELERATOR = "accelerator_type:"


@dataclass(frozen=True)
class Node:
    """A machine of a cluster: CPUs as Ray counts them, whole GPUs, and Ray's name of their type."""

    node_id: str
    cpus: float
    gpus: float = 0.0
    accelerator: str | None = None


@dataclass(frozen=True)
class Gang:
    """The workers of one job, all alike.

    Attributes:
        num_workers: how many there are, at least 1.
        cpus: how many CPUs each has.
        gpus: how many GPUs each has: a share of one, or whole ones.
        accelerator: type of GPU they must run on; None for any.

    Raises:
        ValueError: if a number makes no sense.
    """

    num_workers: int
    cpus: float
    gpus: float = 0.0
    accelerator: str | None = None

    def __post_init__(self) -> None:
        if self.num_workers < 1 or self.cpus < 0 or self.gpus < 0:
            raise ValueError(f"a job cannot have {self}")
        if _units(self.cpus) == 0 and _units(self.gpus) == 0:
            raise ValueError("workers that ask for no CPU and no GPU fit without limit")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(
                f"a worker cannot have {self.gpus:g} GPUs: use a share of one, or a whole number"
            )

    def bundle(self) -> dict[str, float]:
        """What each worker asks Ray for."""
        resources = {"CPU": self.cpus, "GPU": self.gpus}
        if self.accelerator is not None:
            resources[_ACCELERATOR + self.accelerator] = 0.001
        return {name: amount for name, amount in resources.items() if amount}


@dataclass(frozen=True)
class Fit:
    """How jobs of one kind go onto a cluster.

    Attributes:
        jobs: how many run side by side; as long as fewer do the next one finds room at once, in
            whatever order they come and go.
        strategy: what to ask of Ray for each: all workers on one node, or on as few as have room.
    """

    jobs: int
    strategy: Strategy


def slots(node: Node, gang: Gang) -> int:
    """How many of a job's workers one node holds.

    Several workers may share a device, but none has shares of two: of 0.6 GPU each device holds
    one worker, however many devices there are.
    """
    if gang.accelerator is not None and gang.accelerator != node.accelerator:
        return 0
    counts = []
    if _units(gang.cpus):
        counts.append(_units(node.cpus) // _units(gang.cpus))
    if gang.gpus >= 1:
        counts.append(int(node.gpus) // int(gang.gpus))
    elif _units(gang.gpus):
        counts.append(int(node.gpus) * (_UNITS // _units(gang.gpus)))
    return max(0, min(counts))


def fit(nodes: Iterable[Node], gang: Gang) -> Fit:
    """How many jobs run side by side without ever waiting for each other, and how packed.

    A job stays within one node where as many jobs fit that way as if they could be split;
    otherwise it takes as few nodes as have room for it. In both cases the bound holds for any
    order of starts and ends: within nodes, one of fewer running jobs leaves some node a whole
    place; split, all workers being alike, any `num_workers` free places do.
    """
    room = [count for node in nodes if (count := slots(node, gang))]
    within = sum(count // gang.num_workers for count in room)
    split = sum(room) // gang.num_workers
    return Fit(jobs=split, strategy="STRICT_PACK" if within == split > 0 else "PACK")


def accelerators(nodes: Iterable[Node]) -> list[str]:
    """The types of GPU a cluster has."""
    return sorted({node.accelerator for node in nodes if node.accelerator and node.gpus})


def as_node(record: Mapping[str, Any]) -> Node:
    """A node from Ray's description of it, an entry of `ray.nodes()`."""
    resources = record["Resources"]
    types = [name.removeprefix(_ACCELERATOR) for name in resources if name.startswith(_ACCELERATOR)]
    return Node(
        node_id=record["NodeID"],
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        accelerator=min(types, default=None),
    )


def _units(amount: float) -> int:
    return round(amount * _UNITS)
