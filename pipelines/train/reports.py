"""The reports of a job, kept in its folder beside its checkpoints. Needs no torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

REPORTS_NAME = "reports.jsonl"


def add_report(directory: Path, metrics: dict[str, Any]) -> None:
    """Keeps an epoch's report; what came after that epoch before is forgotten."""
    kept = [report for report in kept_reports(directory) if report["epoch"] < metrics["epoch"]]
    path = directory / REPORTS_NAME
    aside = path.with_suffix(".new")
    aside.write_text("".join(f"{json.dumps(report)}\n" for report in [*kept, metrics]))
    os.replace(aside, path)


def kept_reports(directory: Path) -> list[dict[str, Any]]:
    """The reports in a job's folder, by epoch; none if there are none.

    A driver that was killed may not have heard of the last of them, and the job, which goes on
    after them, does not tell them again.
    """
    try:
        text = (directory / REPORTS_NAME).read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]
