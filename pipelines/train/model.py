"""The model of a training job: from scratch or from saved weights, pooled or dense."""

from __future__ import annotations

from torch import nn

import tokenpool as tp
from pipelines.errors import UserError
from pipelines.train.init import init_from_scratch
from pipelines.train.spec import TrainJob


def build_model(job: TrainJob) -> nn.Module:
    """A DeiT from scratch or from saved weights, pooled where the job has a schedule.

    Raises:
        UserError: the saved model is not of the job's shape.
    """
    spec = job.model
    model = tp.build_vit(
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        width=spec.width,
        depth=spec.depth,
        num_heads=spec.heads,
        num_classes=spec.num_classes,
        drop_path=job.train.drop_path,
    )
    if job.init is None:
        init_from_scratch(model)
    else:
        saved = tp.load(job.init).state_dict()
        try:
            model.load_state_dict(saved)
        except RuntimeError as error:
            problem = str(error).splitlines()[1].strip()
            raise UserError(f"{job.init} does not fit width {spec.width}: {problem}") from None
    if job.schedule is not None:
        model = tp.pool(model, job.schedule, method=job.method)
    return model
