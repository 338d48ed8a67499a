"""The reports of a job, kept in its folder beside its checkpoints. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.storage.durable import flush, write_durably
from pipelines.storage.store import ObjectStore

REPORTS_NAME = "reports.jsonl"


def add_report(directory: Path, metrics: dict[str, Any]) -> None:
    """Keeps an epoch's report; what came after that epoch before is forgotten."""
    write_durably(
        directory / REPORTS_NAME, [_with_report(kept_reports(directory), metrics).encode()]
    )
    flush(directory)


def add_report_to(store: ObjectStore, metrics: dict[str, Any]) -> None:
    """`add_report` for a job's folder in an object store."""
    store.write(REPORTS_NAME, _with_report(reports_in(store), metrics).encode())


def _with_report(reports: list[dict[str, Any]], metrics: dict[str, Any]) -> str:
    kept = [report for report in reports if report["epoch"] < metrics["epoch"]]
    return "".join(f"{json.dumps(report)}\n" for report in [*kept, metrics])


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


def reports_in(store: ObjectStore) -> list[dict[str, Any]]:
    """`kept_reports` for a job's folder in an object store."""
    return [json.loads(line) for line in (store.read(REPORTS_NAME) or b"").splitlines()]
