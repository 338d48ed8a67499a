"""`tokenpool squeeze MODEL DATA`: a cheaper form of one trained model, without training."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipelines.commands.folders import check_new_folder
from pipelines.commands.search_command import going_on_later
from pipelines.commands.shared_options import Arch, AsJson, ClassMap, Prepared
from pipelines.console import Screen
from pipelines.errors import UserError

if TYPE_CHECKING:
    from pipelines.squeeze import Squeezed, SqueezedSchedule


def squeeze(
    model: Annotated[
        str, typer.Argument(help="A saved model's folder, a file of weights, a timm or hub name.")
    ],
    data: Prepared,
    max_gmacs: Annotated[float | None, typer.Option(help="The most an image may cost.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="The same as a share of the dense cost: 0.6.")
    ] = None,
    method: Annotated[str, typer.Option(help="How tokens are pooled.")] = "leader",
    schedules: Annotated[int, typer.Option(min=8, help="How many are looked at.")] = 200,
    images: Annotated[int, typer.Option(min=1, help="Of minival, at most.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Folder the best model is saved in.")] = Path(
        "squeezed"
    ),
    arch: Arch = None,
    class_map: ClassMap = None,
    as_json: AsJson = False,
) -> None:
    """Make one trained model cheaper without training it: finds a schedule within a bound.

    A run that was stopped goes on when the same command is typed again.
    """
    check_new_folder(out)
    # Imported only now: torch takes seconds.
    import torch

    from pipelines.models.open_model import open_model
    from pipelines.squeeze import SqueezeOptions
    from pipelines.squeeze.on_prepared import squeeze_on

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("there is no CUDA device: use --device cpu")
    vit = open_model(model, arch)
    options = SqueezeOptions(
        _bound(vit, max_gmacs, rate), method, schedules, images, batch_size, device, seed
    )
    screen = Screen(Console(stderr=as_json, highlight=False))
    kept_in = out.with_name(f"{out.name}.partial.jsonl")
    with going_on_later(screen):
        found = squeeze_on(vit, data, options, screen, class_map=class_map, kept_in=kept_in)
    saved = _saved(vit, out)
    kept_in.unlink(missing_ok=True)
    if as_json:
        typer.echo(json.dumps({**asdict(found), "method": method, "out": str(saved)}))
    else:
        _print(found, screen, options.max_gmacs, saved)
    if saved != out:
        raise UserError(f"{out} cannot be written any more: the model is in {saved}", exit_code=1)


def _bound(model: Any, max_gmacs: float | None, rate: float | None) -> float:
    from pipelines.squeeze.within_bound import share_of_dense

    if (max_gmacs is None) == (rate is None):
        raise UserError("squeeze needs exactly one of --max-gmacs and --rate")
    return share_of_dense(model, rate) if rate is not None else float(max_gmacs or 0)


def _saved(model: Any, out: Path) -> Path:
    """Where the model is saved: `out`, or where that fails a temporary folder."""
    import tokenpool as tp

    try:
        return tp.save(model.cpu(), out)
    except OSError:  # the disk filled up, or went away, while we worked
        return tp.save(model, Path(tempfile.mkdtemp(prefix="tokenpool-squeezed-")) / "model")


def _print(found: Squeezed, screen: Screen, max_gmacs: float, out: Path) -> None:

    table = Table(
        title=f"Schedules within {max_gmacs:.4g} GMACs, on {found.images} images of minival"
    )
    table.add_column("", no_wrap=True)
    for heading in ("GMACs", "% of dense", "KL to dense", "same class", "top-1"):
        table.add_column(heading, justify="right")
    table.add_column("schedule", overflow="fold")
    for row in [*found.front, found.dense]:
        table.add_row(*_cells(row, found))
    screen.console.print(table)
    screen.say(f"the best one is saved in {out} (tokenpool.load reads it)")


def _cells(row: SqueezedSchedule, found: Squeezed) -> list[str]:
    return [
        "best" if row is found.best else "dense" if row is found.dense else "",
        f"{row.gmacs:.4f}",
        f"{100 * row.gmacs / found.dense.gmacs:.1f}",
        f"{row.divergence:.4f}",
        f"{row.agreement:.1%}",
        "" if row.top1 is None else f"{row.top1:.2%}",
        ",".join(map(str, row.schedule)),
    ]
