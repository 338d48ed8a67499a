"""What a training job reports after each epoch, and how a person is told; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

# Of a step, in its order. `data`: waiting for a batch, its copy and augmentation; `forward`: with
# the loss and the teacher; `communication`: the all-reduce of the gradients, which includes waiting
# for a slower rank; `step`: clipping, the optimizer (with ZeRO also the all-gather) and the EMA.
PHASES = ("data", "forward", "backward", "communication", "step")
# In place of a report: a line for the user, and what it is about. `RESTARTED`: the job goes on from
# its last checkpoint; `WAITS`: it waits for room, or waits no more; `NO_ROOM`: it has
# waited in vain, as all others will.
NOTICE, NOTICE_LINE = "notice", "notice_line"
RESTARTED, WAITS, NO_ROOM = "restarted", "waits", "no room"


@dataclass(frozen=True, kw_only=True)
class Report:
    """An epoch of a job. What a job did not measure, or an older one did not tell, is None.

    Attributes:
        epoch: epochs done, from 1.
        loss: the mean over the epoch's steps.
        lr: the learning rate of its last step.
        images_per_s: over all workers.
        top1_minival: fraction in [0, 1]; the average's where the job has one.
        loss_minival: cross-entropy.
        device_seconds: workers × seconds, over all restarts.
        top1_minival_raw: of the weights that are averaged; likewise the two others.
        top1_minival_pooled: of a supernet: the mean over a few schedules near the front.
        share_data: of the time, fraction by phase (`PHASES`), the mean over the workers.
        skipped_steps: left out so far.
        rollbacks: times the job went back to a checkpoint.
        micro_batch: images a worker computes at a time.
        gpu_memory_peak_gib: of the first worker's GPU.
        gpu_utilisation: likewise, a fraction.
    """

    epoch: int
    loss: float | None = None
    lr: float | None = None
    images_per_s: float | None = None
    top1_minival: float
    loss_minival: float | None = None
    device_seconds: float | None = None
    top5_minival: float | None = None
    top1_minival_raw: float | None = None
    top5_minival_raw: float | None = None
    loss_minival_raw: float | None = None
    top1_minival_pooled: float | None = None
    loss_minival_pooled: float | None = None
    share_data: float | None = None
    share_forward: float | None = None
    share_backward: float | None = None
    share_communication: float | None = None
    share_step: float | None = None
    skipped_steps: int | None = None
    rollbacks: int | None = None
    micro_batch: int | None = None
    gpu_memory_peak_gib: float | None = None
    gpu_utilisation: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As Tune and the ledger carry it: without what is None."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Report:
        """What `to_json` gave; what else is there is left out.

        Raises:
            ValueError: the epoch or its top-1 is missing, or something is no number.
        """
        return _REPORT.validate_python(values)


_REPORT = TypeAdapter(Report)


def epoch_line(report: Report, epochs: int) -> str:
    """What an epoch's report says: loss, top-1, rate, speed, where the time went, the GPU."""
    top1 = f"top-1 {report.top1_minival:.2%}"
    if report.top1_minival_raw is not None:
        top1 += f" (raw weights {report.top1_minival_raw:.2%})"
    parts = [
        f"epoch {report.epoch}/{epochs}",
        f"loss {report.loss:.4f}",
        top1,
        f"lr {report.lr:.2g}",
        f"{report.images_per_s:.0f} images/s",
    ]
    shares = {phase: getattr(report, f"share_{phase}") for phase in PHASES}
    times = [f"{phase} {share:.0%}" for phase, share in shares.items() if share is not None]
    if times:
        parts.append(f"({', '.join(times)})")
    if report.gpu_memory_peak_gib is not None:
        parts.append(f"GPU {report.gpu_memory_peak_gib:.1f} GiB")
    if report.gpu_utilisation is not None:
        parts.append(f"GPU busy {report.gpu_utilisation:.0%}")
    if report.skipped_steps:
        parts.append(f"{report.skipped_steps} steps skipped")
    if report.rollbacks:
        parts.append(f"gone back to a checkpoint {report.rollbacks} times")
    return " ".join(parts)


def short_note(report: Report) -> str:
    """The same for the end of a bar."""
    return (
        f"loss {report.loss:.3f} top-1 {report.top1_minival:.1%} {report.images_per_s:.0f} images/s"
    )
