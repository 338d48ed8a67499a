"""`tokenpool doctor`: what is installed, reachable, free and safe on this machine."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.doctor import Check, run_checks
from cluster.security import door_checks
from cluster.security.doors import FLAG, listeners
from pipelines.commands.shared_options import AsJson, Storage
from pipelines.errors import UserError
from pipelines.secrecy import secret_checks
from pipelines.secrecy.guard import redactor
from pipelines.storage.store import StoreError
from pipelines.storage.working import open_root, store_of

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    as_json: AsJson = False,
    storage: Storage = "runs",
    port: Annotated[
        int, typer.Option(help="Port `tokenpool ui` would use.", min=1, max=65535)
    ] = 5000,
    security: Annotated[
        bool, typer.Option("--security", help="Check what stands open or would leak.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(help="With --security: a Ray cluster whose doors to try, http://HOST:8265."),
    ] = None,
    i_know_this_is_open: Annotated[
        bool, typer.Option(FLAG, help="What lets everybody in is a warning and no failure.")
    ] = False,
) -> None:
    """Check this machine; each finding has its remedy. Exit code 1 if something is broken."""
    if not security and (address is not None or i_know_this_is_open):
        raise UserError(f"--address and {FLAG} go with --security: add it")
    root = open_root(storage)
    if security:
        checks = security_checks(root, address=address, open_is_meant=i_know_this_is_open)
    else:
        checks = [*run_checks(root, ui_port=port), *_store_checks(root)]
    if as_json:
        typer.echo(json.dumps([_plain(check) for check in checks], indent=2))
    else:
        Console().print(_table(checks, "security" if security else ""))
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)


def security_checks(
    storage: Path, *, address: str | None = None, open_is_meant: bool = False
) -> list[Check]:
    """All findings about safety on this machine, and of a cluster where an address is given.

    Args:
        storage: The folder that keeps the searches.
        address: Of a cluster, as for `--address`.
        open_is_meant: What stands open is a warning and not a failure.
    """
    # Here, as no other command needs them.

    environment, here = dict(os.environ), listeners()
    found = [
        *door_checks.check_listeners(here),
        *(door_checks.check_cluster(address) if address else []),
        *secret_checks.check_tokens(environment),
        *door_checks.check_mlflow(environment.get("MLFLOW_TRACKING_URI", ""), here),
        *secret_checks.check_tracking(environment),
        *secret_checks.check_environment(environment),
        secret_checks.check_written(storage, environment),
        secret_checks.check_storage(storage),
    ]
    if not open_is_meant:
        return found
    return [
        replace(one, status="warn", remedy=f"{one.remedy} (allowed by {FLAG})")
        if one.status == "fail" and one.is_door
        else one
        for one in found
    ]


def _store_checks(root: Path) -> list[Check]:
    """Whether the object store that a root stands for may be used from this machine."""
    store = store_of(root)
    if store is None:
        return []
    try:
        store.check_writable(f".check-{secrets.token_hex(8)}")
    except StoreError as error:
        found, _, remedy = str(error).partition(": ")
        return [Check("object store", "fail", found, remedy)]
    return [Check("object store", "ok", f"{store.address} can be read and written")]


def _plain(check: Check) -> dict[str, str]:
    shown = redactor()
    return {
        "name": check.name,
        "status": check.status,
        "found": shown.text(check.found),
        "remedy": shown.text(check.remedy),
    }


def _table(checks: list[Check], what: str) -> Table:
    title = f"tokenpool doctor {what}".rstrip()
    table = Table("", "check", "found", "remedy", title=title, title_justify="left")
    for check in checks:
        style, row = _STYLES[check.status], _plain(check)
        table.add_row(
            f"[{style}]{check.status}[/]",
            *(escape(row[key]) for key in ("name", "found", "remedy")),
        )
    return table
