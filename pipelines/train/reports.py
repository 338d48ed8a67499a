"""The reports of a job, kept in its folder beside its checkpoints. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.storage.address import join
from pipelines.storage.checked_lines import checked_line, parse_line
from pipelines.storage.durable import flush, write_durably
from pipelines.storage.store import ObjectStore

REPORTS_NAME = "reports.jsonl"


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
