"""One line for a person about an epoch."""

from __future__ import annotations

from typing import Any

from pipelines.train.report_keys import PHASES


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
