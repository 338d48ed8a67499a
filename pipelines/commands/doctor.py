"""`tokenpool doctor`: what is installed, reachable and free on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.doctor import Check, run_checks
from pipelines.commands.front import AsJson, Storage

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    as_json: AsJson = False,
    storage: Storage = Path("runs"),
    port: Annotated[
        int, typer.Option(help="Port `tokenpool ui` would use.", min=1, max=65535)
    ] = 5000,
) -> None:
    """Check this machine; each finding has its remedy. Exit code 1 if something is broken."""
    checks = run_checks(storage, ui_port=port)
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        Console().print(_table(checks))
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)


def _table(checks: list[Check]) -> Table:
    table = Table("", "check", "found", "remedy", title="tokenpool doctor", title_justify="left")
    for check in checks:
        style = _STYLES[check.status]
        table.add_row(f"[{style}]{check.status}[/]", check.name, escape(check.found), check.remedy)
    return table
