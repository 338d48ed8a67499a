"""Ray Train's trainer for a job: as it is, but without Ray Data, which no job uses."""

from __future__ import annotations

from typing import Any

from cluster import ray_private


class JobTrainer(ray_private.DataParallelTrainer):
    """Starts a controller, which starts workers that run the training loop.

    Ray would also start a process that manages data sets, even where there are none: it imports
    Ray Data, at the moment when the workers import torch on the same cores.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, ray_private.DatasetsCallback)]
