"""`tokenpool squeeze MODEL DATA`: a cheaper form of one trained model, without training."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands.folders import check_new_folder
from pipelines.errors import UserError

if TYPE_CHECKING:
    from pipelines.search.squeeze import Squeezed

_ROWS = 12


def squeeze(
    model: Annotated[
        str,
        typer.Argument(help="A saved model's folder, a file of weights, a timm or hub name."),
    ],
    data: Annotated[Path, typer.Argument(help="A folder that `tokenpool prepare` made.")],
    max_gmacs: Annotated[float | None, typer.Option(help="The most an image may cost.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="The same as a share of the dense cost: 0.6.")
    ] = None,
    method: Annotated[str, typer.Option(help="How tokens are pooled.")] = "wkmedoids",
    schedules: Annotated[int, typer.Option(min=8, help="How many are scored.")] = 200,
    images: Annotated[int, typer.Option(min=1, help="Of minival, at most.")] = 2048,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Folder the best model is saved in.")] = Path(
        "squeezed"
    ),
    arch: Annotated[
        str | None, typer.Option(help="timm's name of the model that plain weights are of.")
    ] = None,
    class_map: Annotated[
        Path | None,
        typer.Option(help="File of the data's class names in the model's order (docs/weights.md)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make one trained model cheaper without training it: finds a schedule within a bound."""
    check_new_folder(out)
    # Imported only now: torch takes seconds.
    import torch
    from rich.console import Console

    from pipelines.console import Screen
    from pipelines.search.squeeze import SqueezeOptions, bound
    from pipelines.search.squeeze import squeeze as run
    from pipelines.train.open_model import open_model

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("there is no CUDA device: use --device cpu")
    vit = open_model(model, arch)
    options = SqueezeOptions(
        bound(vit, max_gmacs, rate), method, schedules, images, batch_size, device, seed, class_map
    )
    screen = Screen(Console(stderr=as_json, highlight=False))
    found = run(vit, data, options, screen)
    saved = _saved(vit, out)
    if as_json:
        typer.echo(json.dumps({**asdict(found), "method": method, "out": str(saved)}))
    else:
        _print(found, screen, options.max_gmacs, saved)
    if saved != out:
        raise UserError(f"{out} cannot be written any more: the model is in {saved}", exit_code=1)


def _saved(model: Any, out: Path) -> Path:
    """Where the model is saved: `out`, or where that fails a temporary folder."""
    import tokenpool as tp

    try:
        return tp.save(model.cpu(), out)
    except OSError:  # the disk filled up, or went away, while we worked
        return tp.save(model, Path(tempfile.mkdtemp(prefix="tokenpool-squeezed-")) / "model")


def _print(found: Squeezed, screen: object, max_gmacs: float, out: Path) -> None:
    from rich.table import Table

    from pipelines.console import Screen
    from pipelines.search.squeeze import shown

    assert isinstance(screen, Screen)
    table = Table(
        title=f"Schedules within {max_gmacs:.4g} GMACs, on {found.images} images of minival"
    )
    table.add_column("", no_wrap=True)
    for heading in ("GMACs", "% of dense", "top-1", "loss"):
        table.add_column(heading, justify="right")
    table.add_column("schedule", overflow="fold")
    rows = [*shown(found.front, _ROWS), found.dense]
    for row in rows:
        mark = "best" if row is found.best else "dense" if row is found.dense else ""
        table.add_row(
            mark,
            f"{row.gmacs:.4f}",
            f"{100 * row.gmacs / found.dense.gmacs:.1f}",
            f"{row.top1:.2%}",
            f"{row.loss:.4f}",
            ",".join(map(str, row.schedule)),
        )
    screen.console.print(table)
    screen.say(f"the best one is saved in {out} (tokenpool.load reads it)")
