"""What a job measures of itself: the sums of an epoch, where its time goes, the GPU it runs on."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.train.checkpoint import EpochSums
from pipelines.train.reports import PHASES

logger = logging.getLogger(__name__)
_MARKS_HELD = 4096
_GPU_SAMPLE_SECONDS = 2.0


class Stopwatch:
    """Gives all the time between two laps to a phase.

    On a GPU the laps are events in its stream: they cost the host nothing, and time counts where
    the GPU spends it, so a batch that is ready before the GPU asks for it costs none. On a CPU the
    host's clock is read.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._totals: dict[str, float] = defaultdict(float)
        self._last = 0.0
        self._marks: list[tuple[str | None, torch.cuda.Event]] = []

    def start(self) -> None:
        """Time counts from here on."""
        if self.device.type == "cuda":
            self._mark(None)
        else:
            self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """The time since the last lap, or the start, was `phase`."""
        if self.device.type == "cuda":
            self._mark(phase)
            return
        now = time.perf_counter()
        self._totals[phase] += now - self._last
        self._last = now

    def totals(self) -> dict[str, float]:
        """Seconds of each phase so far. Waits for the GPU."""
        self._fold()
        return dict(self._totals)

    def restore(self, totals: dict[str, float]) -> None:
        """Begins anew with these totals."""
        self._fold()
        self._totals = defaultdict(float, totals)

    def _mark(self, phase: str | None) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((phase, event))
        if len(self._marks) > _MARKS_HELD:
            self._fold()

    def _fold(self) -> None:
        if not self._marks:
            return
        self._marks[-1][1].synchronize()
        for (_, before), (phase, after) in zip(self._marks, self._marks[1:], strict=False):
            if phase is not None:
                self._totals[phase] += before.elapsed_time(after) / 1000
        self._marks = self._marks[-1:]


def shares(totals: dict[str, float]) -> dict[str, float]:
    """`share_data`, `share_forward` … as fractions of all the time that was counted."""
    whole = sum(totals.values())
    return {f"share_{phase}": totals.get(phase, 0.0) / whole if whole else 0.0 for phase in PHASES}


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
