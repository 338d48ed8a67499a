import io
from dataclasses import replace

import pytest
from pydantic import ValidationError
from rich.console import Console

from pipelines.config import TrainConfig
from pipelines.console import Screen
from pipelines.errors import UserError
from pipelines.train.reports import Report
from pipelines.train.step_faults import first_micro_batch, halved
from pipelines.trials.single_job import _Watcher


def test_size_and_number_say_the_same():
    assert first_micro_batch(TrainConfig(), 32) == 32
    assert first_micro_batch(TrainConfig(accumulate=4), 32) == 8
    assert first_micro_batch(TrainConfig(micro_batch=8), 32) == 8
    assert first_micro_batch(TrainConfig(accumulate=3), 32) == 11
    assert first_micro_batch(TrainConfig(micro_batch=50), 32) == 32
    with pytest.raises(ValidationError, match="micro_batch 8 and accumulate 2 say the same"):
        TrainConfig(micro_batch=8, accumulate=2)


def test_what_fitted_before_is_where_it_goes_on():
    assert first_micro_batch(TrainConfig(), 32, remembered=4) == 4
    assert first_micro_batch(TrainConfig(micro_batch=2), 32, remembered=4) == 2
    assert first_micro_batch(TrainConfig(), 2, remembered=4) == 2  # on more workers than before


def test_halves_down_to_one():
    sizes = [32]
    while sizes[-1] > 1:
        sizes.append(halved(sizes[-1]))
    assert sizes == [32, 16, 8, 4, 2, 1] and halved(3) == 2
    with pytest.raises(UserError, match="one image at a time"):
        halved(1)


def test_the_user_hears_of_it_once():
    text = io.StringIO()
    screen = Screen(Console(file=text, width=200))
    watcher = _Watcher(screen, None, 3, 32)
    report = Report(epoch=1, loss=1.0, lr=1e-3, images_per_s=10.0, top1_minival=0.5)
    for epoch, size in ((1, 32), (2, 8), (3, 8)):
        watcher.report("job", replace(report, epoch=epoch, micro_batch=size))
    lines = text.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("memory ran out: workers compute micro-batches of 8 images, not 32")
