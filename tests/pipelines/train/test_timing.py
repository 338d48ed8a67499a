import math
import time

import pytest
import torch
import torch.distributed as dist

from pipelines.train.checkpoint import EpochSums
from pipelines.train.metrics import EpochMeter, GpuMeter, Stopwatch, shares
from pipelines.train.reports import Report, epoch_line

CPU = torch.device("cpu")


def test_each_lap_goes_to_its_phase():
    watch = Stopwatch(CPU)
    watch.start()
    for _ in range(2):
        time.sleep(0.02)
        watch.lap("forward")
        time.sleep(0.04)
        watch.lap("backward")
    totals = watch.totals()
    assert totals["forward"] == pytest.approx(0.04, rel=0.3)
    assert totals["backward"] == pytest.approx(0.08, rel=0.3)
    rows = shares({"data": 1.0, "forward": 2.0, "checkpoint": 1.0})
    assert rows["share_data"] == 0.25 and rows["share_forward"] == 0.5
    assert sum(rows.values()) == 0.75  # the rest went into checkpoints


def test_an_interrupted_epoch_adds_up_to_the_same_loss():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        losses = torch.rand(20, generator=torch.Generator().manual_seed(0))
        straight = EpochMeter(Stopwatch(CPU), EpochSums())
        for loss in losses:
            straight.add(loss)
        first = EpochMeter(Stopwatch(CPU), EpochSums())
        for loss in losses[:7]:
            first.add(loss)
        sums = first.sums()
        second = EpochMeter(Stopwatch(CPU), EpochSums(**vars(sums)))
        for loss in losses[7:]:
            second.add(loss)
        assert second.mean_loss() == straight.mean_loss()
        assert second.seconds > sums.seconds > 0
        # Sums of two ranks that one rank goes on with.
        third = EpochMeter(Stopwatch(CPU), EpochSums(steps=2, losses=[1.0, 3.0]))
        assert third.mean_loss() == 2.0
        assert math.isnan(EpochMeter(Stopwatch(CPU), EpochSums()).mean_loss())
    finally:
        dist.destroy_process_group()


def test_a_cpu_has_no_gpu_to_report():
    meter = GpuMeter(CPU)
    meter.start()
    meter.sample()
    assert meter.report() == {}


def test_the_line_of_an_epoch():
    report = {"epoch": 2, "loss": 1.5, "lr": 1e-3, "images_per_s": 812.4, "top1_minival": 0.875}
    assert (
        epoch_line(Report.of(report), 9)
        == "epoch 2/9 loss 1.5000 top-1 87.50% lr 0.001 812 images/s"
    )
    report |= {"share_data": 0.1, "share_forward": 0.3, "share_backward": 0.6, "skipped_steps": 2}
    report |= {
        "gpu_memory_peak_gib": 3.25,
        "gpu_utilisation": 0.97,
        "top1_minival_raw": 0.85,
        "rollbacks": 1,
    }
    assert epoch_line(Report.of(report), 9) == (
        "epoch 2/9 loss 1.5000 top-1 87.50% (raw weights 85.00%) lr 0.001 812 images/s "
        "(data 10%, forward 30%, backward 60%) GPU 3.2 GiB GPU busy 97% 2 steps skipped "
        "gone back to a checkpoint 1 times"
    )
