"""Looks at every node of a cluster, in seconds, before a search puts anything on it.

What is wrong on one node of many shows hours later otherwise, as a job that fails there and
nowhere else: other data, another version, a folder that is not shared, a port that is blocked.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import ray_private
from cluster.node_report import Report, Request, SharedFolder, Storage, look, problems, unwritten
from cluster.probe import AddressError
from cluster.reach import unreachable

_ANSWER_SECONDS = 120.0


@dataclass(frozen=True)
class Findings:
    """A cluster on which nothing is wrong: how many nodes were looked at, and for how long."""

    nodes: int
    seconds: float


@dataclass(frozen=True)
class _Answer:
    """A node's report, or why there is none, and when it was asked and answered."""

    node: str
    report: Report | str
    asked: float
    answered: float
    gpus: float


def check_nodes(
    storage: Path | Storage, files: Sequence[Path], *, gpus_per_worker: float = 0.0
) -> Findings:
    """Looks at all nodes of the cluster that this process is connected to.

    Args:
        storage: where searches are kept, a folder or what stands for one; the same on every node.
        files: the files of the data, alike on every node.
        gpus_per_worker: above 0 the nodes must reach each other over NCCL, else over gloo.

    Raises:
        AddressError: if something is not right; one line that names the node and the remedy.
    """
    started = time.monotonic()
    nodes = [record for record in ray.nodes() if record["Alive"]]
    place = SharedFolder(storage) if isinstance(storage, Path) else storage
    mark = f".preflight-{secrets.token_hex(8)}"
    request = Request(mark, secrets.token_hex(16), place, tuple(map(str, files)))
    try:
        if isinstance(storage, Path):
            storage.mkdir(parents=True, exist_ok=True)
        place.write(mark, request.word)
    except OSError as error:
        raise AddressError(
            f"storage {place.place} cannot be written to on this node ({error.strerror or error}): "
            "set it to a place that every node of the cluster sees"
        ) from None
    try:
        here = look(request, ray.util.get_node_ip_address())
        answers = _ask(nodes, request)
        found = [problem for answer in answers for problem in _judge(here, answer, place)]
        found = found or unwritten(request, [answer.node for answer in answers])
    finally:
        place.delete(mark)
    if not found:
        found = _meet(nodes, gpus_per_worker)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise AddressError(found[0] + more)
    return Findings(len(nodes), time.monotonic() - started)


def _judge(here: Report, answer: _Answer, storage: Storage) -> list[str]:
    """What is wrong with one node, by its answer."""
    if isinstance(answer.report, str):
        return [f"node {answer.node}: {answer.report}"]
    return problems(
        here,
        answer.report,
        storage,
        asked=answer.asked,
        answered=answer.answered,
        gpus_for_ray=answer.gpus,
    )


def _ask(nodes: list[dict[str, Any]], request: Request) -> list[_Answer]:
    """Every node's report."""
    ask = ray.remote(num_cpus=0, max_retries=0)(look)
    pending, found = {}, []
    for record in nodes:
        where = NodeAffinitySchedulingStrategy(record["NodeID"], soft=False)
        name = record["NodeManagerAddress"]
        task = ask.options(scheduling_strategy=where).remote(request, name)
        pending[task] = (record, time.time())
    deadline = time.monotonic() + _ANSWER_SECONDS
    while pending:
        left = deadline - time.monotonic()
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=max(0.0, left))
        now = time.time()
        for task in ready or list(pending):
            record, asked = pending.pop(task)
            try:
                report: Report | str = ray.get(task, timeout=0)
            except Exception as error:  # whatever Ray or the node throws is said by its name
                report = _why(error)
                ray.cancel(task, force=True)
            gpus = record["Resources"].get("GPU", 0.0)
            found.append(_Answer(record["NodeManagerAddress"], report, asked, now, gpus))
    return found


def _why(error: Exception) -> str:
    text = str(error)
    if isinstance(error, ray.exceptions.GetTimeoutError):
        return f"it did not answer within {_ANSWER_SECONDS:.0f} s: is it overloaded?"
    if "No module named" in text:
        return (
            "this program is not installed there: submit the search with `tokenpool submit`, which "
            "sends it along, or install it"
        )
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else type(error).__name__


def _meet(nodes: list[dict[str, Any]], gpus_per_worker: float) -> list[str]:
    """Whether those that may hold workers reach each other; over NCCL where a GPU is free."""
    if not gpus_per_worker:
        workers = [record for record in nodes if record["Resources"].get("CPU", 0)]
        return unreachable(workers)
    free = ray_private.available_resources_per_node()
    workers = [record for record in nodes if free.get(record["NodeID"], {}).get("GPU", 0) >= 1]
    return unreachable(workers, backend="nccl")
