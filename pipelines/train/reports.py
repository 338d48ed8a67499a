"""The reports of a job: what they hold, as a line for a person, kept beside its checkpoints.

Needs no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.storage.address import join
from pipelines.storage.checked_lines import checked_line, parse_line
from pipelines.storage.durable import flush, write_durably
from pipelines.storage.store import ObjectStore

REPORTS_NAME = "reports.jsonl"
# Of a step, in its order. `data`: waiting for a batch, its copy and augmentation; `forward`: with
# the loss and the teacher; `communication`: the all-reduce of the gradients, which includes waiting
# for a slower rank; `step`: clipping, the optimizer (with ZeRO also the all-gather) and the EMA.
PHASES = ("data", "forward", "backward", "communication", "step")
# In place of a report: a line for the user, and what it is about. `RESTARTED`: the job goes on from
# its last checkpoint; `WAITS`: it waits for room on a disk, or waits no more; `NO_ROOM`: it has
# waited in vain, as all others will.
NOTICE, NOTICE_LINE = "notice", "notice_line"
RESTARTED, WAITS, NO_ROOM = "restarted", "waits", "no room"
# What each epoch's report holds, and what it may hold beside that.
REPORT_KEYS = (
    "epoch",
    "loss",
    "lr",
    "images_per_s",
    "top1_minival",
    "loss_minival",
    "device_seconds",
)
OPTIONAL_KEYS = (
    "top5_minival",
    "top1_minival_raw",
    "top5_minival_raw",
    "loss_minival_raw",
    "top1_minival_pooled",  # of a supernet: the mean over a few schedules near the front
    "loss_minival_pooled",
    *(f"share_{phase}" for phase in PHASES),
    "skipped_steps",
    "rollbacks",
    "micro_batch",
    "gpu_memory_peak_gib",
    "gpu_utilisation",
)


def add_report(directory: Path, metrics: dict[str, Any]) -> None:
    """Keeps an epoch's report; what came after that epoch before is forgotten."""
    write_durably(directory / REPORTS_NAME, [_with_report(kept_reports(directory), metrics)])
    flush(directory)


def add_report_to(store: ObjectStore, metrics: dict[str, Any]) -> None:
    """`add_report` for a job's folder in an object store."""
    store.write(REPORTS_NAME, _with_report(reports_in(store), metrics))


def _with_report(reports: list[dict[str, Any]], metrics: dict[str, Any]) -> bytes:
    kept = [report for report in reports if report["epoch"] < metrics["epoch"]]
    return b"".join(map(checked_line, [*kept, metrics]))


def kept_reports(directory: Path) -> list[dict[str, Any]]:
    """The reports in a job's folder, by epoch; none if there are none.

    A driver that was killed may not have heard of the last of them, and the job, which goes on
    after them, does not tell them again.

    Raises:
        UserError: they were altered.
    """
    path = directory / REPORTS_NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return _reports(content, str(path))


def reports_in(store: ObjectStore) -> list[dict[str, Any]]:
    """`kept_reports` for a job's folder in an object store."""
    return _reports(store.read(REPORTS_NAME) or b"", join(store.address, REPORTS_NAME))


def _reports(content: bytes, name: str) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            report = parse_line(line)
            report["epoch"] = int(report["epoch"])
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{name} line {number} is damaged: delete the file, as the ledger has its reports, "
                "and type the same command to go on",
                exit_code=1,
            ) from None
        found.append(report)
    return found


def epoch_line(report: dict[str, Any], epochs: int) -> str:
    """What an epoch's report says: loss, top-1, rate, speed, where the time went, the GPU."""
    top1 = f"top-1 {report['top1_minival']:.2%}"
    if "top1_minival_raw" in report:
        top1 += f" (raw weights {report['top1_minival_raw']:.2%})"
    parts = [
        f"epoch {report['epoch']}/{epochs}",
        f"loss {report['loss']:.4f}",
        top1,
        f"lr {report['lr']:.2g}",
        f"{report['images_per_s']:.0f} images/s",
    ]
    times = [
        f"{phase} {report[f'share_{phase}']:.0%}" for phase in PHASES if f"share_{phase}" in report
    ]
    if times:
        parts.append(f"({', '.join(times)})")
    if "gpu_memory_peak_gib" in report:
        parts.append(f"GPU {report['gpu_memory_peak_gib']:.1f} GiB")
    if "gpu_utilisation" in report:
        parts.append(f"GPU busy {report['gpu_utilisation']:.0%}")
    if report.get("skipped_steps"):
        parts.append(f"{report['skipped_steps']} steps skipped")
    if report.get("rollbacks"):
        parts.append(f"gone back to a checkpoint {report['rollbacks']} times")
    return " ".join(parts)


def short_note(report: dict[str, Any]) -> str:
    """The same for the end of a bar."""
    return (
        f"loss {report['loss']:.3f} top-1 {report['top1_minival']:.1%} "
        f"{report['images_per_s']:.0f} images/s"
    )
