"""What a job measures of itself: the sums of an epoch, and the GPU it runs on."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.train.checkpoint import EpochSums
from pipelines.train.timing import Stopwatch, shares

logger = logging.getLogger(__name__)

_GPU_SAMPLE_SECONDS = 2.0


class EpochMeter:
    """Adds up an epoch on one rank, in parts that a checkpoint can hold.

    Each rank's own sum is stored, so that a job that goes on with as many ranks adds the same
    numbers in the same order and reports the same loss, to the bit.

    Args:
        watch: measures the phases of the steps.
        before: what was there when the job was interrupted within this epoch, or nothing.
    """

    def __init__(self, watch: Stopwatch, before: EpochSums) -> None:
        self._watch, self._before = watch, before
        self.steps = before.steps
        rank, world_size = dist.get_rank(), dist.get_world_size()
        if len(before.losses) == world_size:
            mine = before.losses[rank]
        else:
            mine = sum(before.losses) if rank == 0 else 0.0
        self._loss_sum = torch.tensor(mine, dtype=torch.float32, device=watch.device)
        watch.restore(before.phases)
        self._began = time.monotonic()
        watch.start()

    def add(self, loss: Tensor) -> None:
        """Counts the loss of a step that was applied."""
        self._loss_sum += loss
        self.steps += 1

    def sums(self) -> EpochSums:
        """The state of now. To be called by all ranks together."""
        losses = [torch.zeros_like(self._loss_sum) for _ in range(dist.get_world_size())]
        dist.all_gather(losses, self._loss_sum)
        return EpochSums(
            steps=self.steps,
            losses=[loss.item() for loss in losses],
            seconds=self.seconds,
            phases=self._watch.totals(),
        )

    @property
    def seconds(self) -> float:
        """Spent on this epoch's steps."""
        return self._before.seconds + time.monotonic() - self._began

    def mean_loss(self) -> float:
        """Over the counted steps of all ranks; NaN without any. For all ranks together."""
        loss = (
            self._loss_sum / self.steps
            if self.steps
            else torch.full_like(self._loss_sum, torch.nan)
        )
        dist.all_reduce(loss)
        return loss.item() / dist.get_world_size()

    def shares(self) -> dict[str, float]:
        """Fractions of the time by phase, the mean over the ranks. For all ranks together."""
        mine = shares(self._watch.totals())
        values = torch.tensor(list(mine.values()), device=self._watch.device)
        dist.all_reduce(values)
        means = (values / dist.get_world_size()).tolist()
        return dict(zip(mine, (round(mean, 4) for mean in means), strict=True))


class GpuMeter:
    """Peak memory and utilisation of this rank's GPU; nothing on a CPU.

    Utilisation is what the driver says: the share of a recent moment in which a kernel ran,
    sampled every two seconds. It is left out where `nvidia-ml-py` is not installed.

    Args:
        device: of this rank.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._samples: list[int] = []
        self._next = 0.0
        self._readable = device.type == "cuda"

    def start(self) -> None:
        """Forgets what was."""
        self._samples.clear()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def sample(self) -> None:
        """To be called often; reads the utilisation now and then."""
        if not self._readable or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _GPU_SAMPLE_SECONDS
        try:
            self._samples.append(torch.cuda.utilization(self._device))
        except Exception as error:  # no library, no driver, no right to ask: all the same here
            self._readable = False
            logger.info("the GPU's utilisation cannot be read: %s", error)

    def report(self) -> dict[str, Any]:
        """`gpu_memory_peak_gib` and, where it can be read, `gpu_utilisation` (fraction).

        Of rank 0's GPU in its reports.
        """
        if self._device.type != "cuda":
            return {}
        peak = torch.cuda.max_memory_allocated(self._device) / 2**30
        report: dict[str, Any] = {"gpu_memory_peak_gib": round(peak, 3)}
        if self._samples:
            report["gpu_utilisation"] = round(sum(self._samples) / len(self._samples) / 100, 3)
        return report
