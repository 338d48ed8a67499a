"""Repeated augmentation reaches the loader of a job, for training alone."""

from types import SimpleNamespace

import pytest
import torch

from pipelines.config.augmentation import AugmentConfig
from pipelines.train.loop import _Training


@pytest.mark.parametrize("repeats", [1, 3])
def test_an_epoch_is_as_long_and_each_image_comes_so_often(digits, repeats):
    job = object.__new__(_Training)
    job.job = SimpleNamespace(
        data=SimpleNamespace(path=digits, loader="auto", loader_threads=1),
        model=SimpleNamespace(image_size=32),
        seed=0,
    )
    job.train = SimpleNamespace(augment=AugmentConfig(repeats=repeats))
    job.share, job.rank, job.world_size, job.device = 48, 0, 1, torch.device("cpu")
    loader = job._loader("train", train=True)
    images = torch.cat([batch.clone() for batch, _ in loader]).flatten(1)
    loader.close()
    assert len(images) == 1151 // 48 * 48
    # A few of the digits are equal to others, pixel by pixel.
    _, counts = images.unique(dim=0, return_counts=True)
    assert counts.double().mean() == pytest.approx(repeats, rel=0.02)
    minival = job._loader("minival", train=False)
    assert sum(len(labels) for _, labels in minival) == 287
    minival.close()
