"""`tokenpool report`, `explain`, `import` and `track rebuild`: a search told to others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.shared_options import MovedData, Name, NameOrFolder, Storage
from pipelines.errors import UserError
from pipelines.results.explain import explain as explain_model
from pipelines.results.imported_fronts import import_front
from pipelines.results.result_files import write_page
from pipelines.search.refresh import send, send_outside
from pipelines.search.state import load_state
from pipelines.storage.search_files import Search
from pipelines.storage.working import open_root
from pipelines.tracking.tracking_store import tracking_store
from pipelines.tracking.upkeep import rebuild

track = typer.Typer(help="Keep MLflow in step with a search.", no_args_is_help=True)


def report(
    name: Name,
    out: Annotated[
        Path | None, typer.Option(help="Where to write; default report.html in its folder.")
    ] = None,
    storage: Storage = "runs",
) -> None:
    """Write a search's front as one self-contained HTML page."""
    search = Search.open(storage, name)
    state = load_state(search)
    target = out or search.report
    write_page(state, search, target)
    if out is None:
        send(search, target.name)
    typer.echo(f"wrote {f'{search.shown}/{target.name}' if out is None else out}")


def explain(
    name: Name,
    model: Annotated[str, typer.Argument(help="A trial's id, or dense-WIDTH.")],
    storage: Storage = "runs",
) -> None:
    """Say why a model was kept, stopped or failed, and how far it is from the front."""
    typer.echo(explain_model(load_state(Search.open(storage, name)), model))


def import_results(
    name: Name,
    source: Annotated[Path, typer.Argument(help="Parquet, CSV or JSON lines: gmacs, top1, label.")],
    label: Annotated[str | None, typer.Option(help="What to call it; default the file.")] = None,
    storage: Storage = "runs",
) -> None:
    """Add a front measured elsewhere to a search's report, for comparison."""
    search = Search.open(storage, name)
    load_state(search)
    found = import_front(search, source, label)
    send_outside(search)
    typer.echo(f"{found.name}: {len(found.points)} models; see `tokenpool report {name}`")


@track.command("rebuild")
def rebuild_command(name: Name, storage: Storage = "runs") -> None:
    """Log a search to MLflow anew, from its ledger alone."""

    search = Search.open(storage, name)
    load_state(search)
    store = tracking_store(search.root)
    count = rebuild(search, store)
    typer.echo(f"{name}: {count} runs logged to {store.shown}")


def register(
    name: NameOrFolder,
    data: MovedData = None,
    as_name: Annotated[
        str | None, typer.Option("--as", help="Of a folder: the registered model's name.")
    ] = None,
    storage: Storage = "runs",
) -> None:
    """Put a search's published models, or a saved one, into MLflow's model registry."""
    root = open_root(storage)
    store = tracking_store(root)
    if (Path(name) / "model.json").is_file():
        if data is None:
            raise UserError("say with --data which prepared data the model is for")
        from pipelines.tracking.registry import register_folder  # here, as it takes seconds

        one = register_folder(Path(name), data, store, as_name)
        shown = as_name or one.point_id
        typer.echo(f"models:/{shown}/{one.version}  {name}")
        typer.echo(
            f'mlflow.pyfunc.load_model("models:/{shown}/{one.version}") with '
            f"MLFLOW_TRACKING_URI={store.shown}"
        )
        return
    if as_name is not None:
        raise UserError(f"--as {as_name}: a search's models have its name")
    search = Search(root, name)
    state = load_state(search)
    from pipelines.tracking.registry import register_published  # here, as it takes seconds

    for found in register_published(search, state, store, data=data):
        known = "" if found.new else " (known already)"
        typer.echo(f"models:/{name}/{found.version}  {found.point_id}{known}")
    typer.echo(
        f'mlflow.pyfunc.load_model("models:/{name}@knee") with MLFLOW_TRACKING_URI={store.shown}'
    )
