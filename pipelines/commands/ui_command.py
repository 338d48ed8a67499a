"""`tokenpool ui`: MLflow over the right store, on loopback unless it is to be open."""

from __future__ import annotations

import logging
import signal
from typing import Annotated

import typer

from cluster.security.doors import FLAG, OpenToNetworkError, refuse_open_host
from pipelines.commands.shared_options import Storage
from pipelines.errors import UserError
from pipelines.search.state import load_state, search_names
from pipelines.storage.search_files import Search
from pipelines.storage.working import open_root
from pipelines.tracking.mlflow_server import (
    LOOPBACK,
    check_port,
    start_server,
    stop_server,
    url_host,
)
from pipelines.tracking.tracking_store import tracking_store
from pipelines.tracking.upkeep import catch_up

logger = logging.getLogger(__name__)

_TUNNEL = (
    "reach it through a tunnel (ssh -L {port}:127.0.0.1:{port} THIS-MACHINE), or run a server with "
    "passwords (cluster/mlflow/)"
)


def ui(
    name: Annotated[str | None, typer.Argument(help="The search to open; default all.")] = None,
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 5000,
    storage: Storage = "runs",
    host: Annotated[
        str, typer.Option(help="Address to listen at; beyond loopback nobody asks for a password.")
    ] = LOOPBACK,
    i_know_this_is_open: Annotated[
        bool, typer.Option(FLAG, help="Let everybody who reaches --host read and delete runs.")
    ] = False,
) -> None:
    """Browse searches in MLflow, on this machine only, until Ctrl-C."""
    try:
        refuse_open_host(host, "MLflow", _TUNNEL.format(port=port), i_know_this_is_open)
    except OpenToNetworkError as error:
        raise UserError(str(error)) from None
    root = open_root(storage)
    names = [name] if name else search_names(root)
    if not names:
        raise UserError(f"no search under {storage}: run `tokenpool search CONFIG.yaml` first")
    for each in list(names):  # what is wrong with one is said before anything is started
        try:
            load_state(Search(root, each))
        except UserError as error:
            if name:
                raise
            typer.echo(error, err=True)
            names.remove(each)
    store = tracking_store(root)
    if store.is_local:
        check_port(port, host)
    base = f"http://{url_host(host)}:{port}" if store.is_local else store.shown.rstrip("/")
    pages = {search: catch_up(root, search, store, base) for search in names}
    log = root / "mlflow-server.log"
    process = start_server(store, port, log, host) if store.is_local else None
    typer.echo(f"MLflow: {base}" + (" (Ctrl-C ends it)" if process else ""))
    for search, page in pages.items():
        typer.echo(f"  {search}: {page.parent}")
        typer.echo(f"  {' ' * len(search)}  its front: {page.front}")
    if process is None:
        return
    # Ended from outside, it must not leave the server behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        process.wait()
    except KeyboardInterrupt:
        typer.echo("stopped")
    finally:
        stop_server(process)
