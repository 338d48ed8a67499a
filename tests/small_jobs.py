"""A training job that is small, for tests that run it or only look at it."""

from pipelines.config import DataConfig, TrainConfig, WorkersConfig
from pipelines.models.model_spec import ModelSpec
from pipelines.train.spec import TrainJob

SHAPE = {"width": 16, "heads": 2, "depth": 1, "patch_size": 8, "image_size": 32, "num_classes": 10}


def small_job(storage, data, name="job", workers=None, train=None, **shape):
    """One of a model of this shape, else of `SHAPE`."""
    model = ModelSpec(**SHAPE | shape)
    return TrainJob(
        job_id=name,
        storage=storage,
        data=DataConfig(path=data, image_size=model.image_size),
        model=model,
        train=train or TrainConfig(epochs=10),
        workers=workers or WorkersConfig(),
    )
