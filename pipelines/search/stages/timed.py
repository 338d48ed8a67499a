"""Where models are timed: on the declared type of device, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from pipelines.search.stages.context import StageContext


def timed_task(context: StageContext, function: Callable[..., Any]) -> tuple[Any, str, int]:
    """A function as a Ray task with the resources of a scorer.

    Returns:
        The task, the device it has (`cpu` or `cuda`), and the threads it may compute with.

    Raises:
        UserError: it does not fit the cluster.
    """
    stage, accelerator = context.config.screen, context.config.publish.accelerator
    context.fits(1, stage.cpus_per_actor, stage.gpus_per_actor)
    # A whole GPU: what shares it would be timed along.
    gpus = 1 if stage.gpus_per_actor else 0
    options: dict[str, Any] = {"accelerator_type": accelerator} if accelerator and gpus else {}
    task: Any = ray.remote(num_cpus=stage.cpus_per_actor, num_gpus=gpus, **options)(function)
    return task, "cuda" if gpus else "cpu", max(1, int(stage.cpus_per_actor))
