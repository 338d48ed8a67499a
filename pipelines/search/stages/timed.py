"""Where models are timed: on one type of device, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.placement import Gang, accelerators, slots
from pipelines.errors import UserError
from pipelines.search.stages.context import StageContext


def timed_gang(context: StageContext) -> Gang:
    """What timing takes: the CPUs of a scorer, and where that has a GPU, a whole one of one type.

    Raises:
        UserError: it does not fit the cluster, or GPUs are of several types and none is declared.
    """
    stage, accelerator = context.config.screen, context.config.publish.accelerator
    if not stage.gpus_per_actor:
        context.fits(1, stage.cpus_per_actor, 0.0)
        return Gang(1, stage.cpus_per_actor)
    types = accelerators(context.cluster.nodes()) if context.cluster.nodes is not None else []
    if accelerator is None and len(types) > 1:
        raise UserError(
            f"the cluster has GPUs of several types ({', '.join(types)}): say on which one latency "
            f"is measured, --set publish.accelerator={types[0]}"
        )
    accelerator = accelerator or (types[0] if types else None)
    # A whole GPU: what shares it would be timed along.
    context.fits(1, stage.cpus_per_actor, 1.0, accelerator)
    return Gang(1, stage.cpus_per_actor, 1.0, accelerator)


def timed_task(context: StageContext, function: Callable[..., Any]) -> tuple[Any, str, int]:
    """A function as a Ray task on the machines that models are timed on.

    CPUs have no declared type: all that is timed on them is timed on one node, this one where
    it has enough of them.

    Returns:
        The task, the device it has (`cpu` or `cuda`), and the threads it may compute with.

    Raises:
        UserError: see `timed_gang`.
    """
    gang = timed_gang(context)
    options: dict[str, Any] = {}
    if gang.gpus and gang.accelerator:
        options["accelerator_type"] = gang.accelerator
    elif not gang.gpus and (node := _cpu_node(context, gang)) is not None:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
    task: Any = ray.remote(num_cpus=gang.cpus, num_gpus=gang.gpus, **options)(function)
    return task, "cuda" if gang.gpus else "cpu", max(1, int(gang.cpus))


def _cpu_node(context: StageContext, gang: Gang) -> str | None:
    nodes = context.cluster.nodes() if context.cluster.nodes is not None else []
    fitting = sorted(node.node_id for node in nodes if slots(node, gang))
    here = ray.get_runtime_context().get_node_id() if fitting else None
    return here if here in fitting else (fitting[0] if fitting else None)
