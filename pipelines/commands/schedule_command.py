"""`tokenpool schedule powerbert MODEL DATA`: schedules found the way PoWER-BERT finds them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn

from pipelines.commands.shared_options import Arch, AsJson, ClassMap, Prepared
from pipelines.console import table
from pipelines.data.manifest import load_manifest
from pipelines.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.data.preprocessing import Preprocessing

app = typer.Typer(help="Find a schedule for one model.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Find a schedule for one model."""


@app.command()
def powerbert(
    model: Annotated[str, typer.Argument(help="A saved model's folder, or a timm name.")],
    data: Prepared,
    penalty: Annotated[
        list[float] | None,
        typer.Option("--penalty", help="λ; give several for several runs, one schedule each."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches to train the vectors on.")] = 300,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    learning_rate: Annotated[float, typer.Option(help="Of the extract vectors.")] = 0.01,
    model_learning_rate: Annotated[
        float, typer.Option(help="Of the model's weights meanwhile; 0 freezes them.")
    ] = 0.0,
    split: Annotated[str, typer.Option(help="train, minival or val.")] = "train",
    arch: Arch = None,
    class_map: ClassMap = None,
    as_json: AsJson = False,
) -> None:
    """Train soft-extract vectors under a sparsity penalty and print the schedule: one run per λ."""
    import torch

    import tokenpool as tp
    from pipelines.data.preprocessing import preprocessing_of
    from pipelines.models.class_order import match_classes, reorder_head
    from pipelines.models.open_model import open_model

    vit = open_model(model, arch)
    manifest = load_manifest(data)
    view = preprocessing_of(vit, manifest)
    if vit.num_classes != len(manifest.classes):
        raise UserError(
            f"the model has {vit.num_classes} classes but {data} has {len(manifest.classes)}: give "
            "data it was trained on"
        )
    order, note = match_classes(vit, manifest.classes, class_map)
    if order is not None:
        reorder_head(vit, order, manifest.classes)
    weights = {name: value.clone() for name, value in vit.state_dict().items()}
    rows = []
    console = Console(stderr=True)
    for line in (str(view), note):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for value in penalty or [1e-4]:
        vit.load_state_dict(weights)
        torch.manual_seed(0)
        with Progress(
            *Progress.get_default_columns(), TextColumn("{task.fields[note]}"), console=console
        ) as progress:
            task = progress.add_task(f"λ = {value:g}", total=steps, note="")

            def tell(step: int, loss: float, masses: Tensor, task: TaskID = task) -> None:
                kept = float(masses.mean())
                progress.update(task, completed=step, note=f"loss {loss:.3f}, {kept:.1f} tokens")

            try:
                found = tp.powerbert_schedule(
                    vit,
                    _batches(data, split, view, batch_size, steps),
                    value,
                    learning_rate=learning_rate,
                    model_learning_rate=model_learning_rate,
                    progress=tell,
                )
            except ValueError as error:
                raise UserError(str(error)) from None
        tail = found.losses[-20:]
        rows.append(
            {
                "penalty": value,
                "schedule": str(found.schedule),
                "gmacs": tp.macs(vit, found.schedule, "powerbert").gmacs,
                "gmacs_wkmedoids": tp.macs(vit, found.schedule, "wkmedoids").gmacs,
                "loss": sum(tail) / len(tail),
            }
        )
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    headings = ("λ", "GMACs, pruned", "GMACs, wkmedoids", "loss", "schedule")
    shown = table("PoWER-BERT schedules", headings, left=("schedule",))
    for row in rows:
        shown.add_row(
            f"{row['penalty']:g}",
            f"{row['gmacs']:.4f}",
            f"{row['gmacs_wkmedoids']:.4f}",
            f"{row['loss']:.4f}",
            str(row["schedule"]),
        )
    Console().print(shown)


def _batches(
    data: Path, split: str, view: Preprocessing, batch_size: int, steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """`steps` training batches, over as many epochs as that takes."""
    from pipelines.data.split_batches import split_batches

    given = 0
    while given < steps:
        before = given
        for pixels, labels in split_batches(data, split, view, batch_size, train=True):
            yield view(pixels), labels
            given += 1
            if given == steps:
                return
        if given == before:
            raise UserError(f"{split} of {data} has fewer images than one batch of {batch_size}")
