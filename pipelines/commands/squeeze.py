"""`tokenpool squeeze MODEL DATA`: a cheaper form of one trained model, without training."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.errors import UserError

if TYPE_CHECKING:
    from pipelines.search.squeeze import Squeezed

_ROWS = 12


def squeeze(
    model: Annotated[str, typer.Argument(help="A saved model's folder, or a timm name.")],
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make one trained model cheaper without training it: finds a schedule within a bound."""
    if out.exists():
        raise UserError(f"{out} exists: give another --out folder, or remove it")
    # Imported only now: torch takes seconds.
    import torch
    from rich.console import Console

    import tokenpool as tp
    from pipelines.commands.analyze import open_model
    from pipelines.console import Screen
    from pipelines.search.squeeze import SqueezeOptions, bound
    from pipelines.search.squeeze import squeeze as run

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("there is no CUDA device: use --device cpu")
    vit = open_model(model)
    options = SqueezeOptions(
        bound(vit, max_gmacs, rate), method, schedules, images, batch_size, device, seed
    )
    screen = Screen(Console(stderr=as_json, highlight=False))
    found = run(vit, data, options, screen)
    tp.save(vit.cpu(), out)
    if as_json:
        typer.echo(json.dumps({**asdict(found), "method": method, "out": str(out)}))
        return
    _print(found, screen, options.max_gmacs, out)


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
