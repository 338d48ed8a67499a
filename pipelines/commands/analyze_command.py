"""`tokenpool analyze MODEL DATA`: why and where a model can be pooled, measured on its own data."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from pipelines.commands.folders import check_writable
from pipelines.commands.shared_options import Arch, AsJson, Prepared
from pipelines.console import table
from pipelines.data.manifest import load_manifest
from pipelines.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.data.preprocessing import Preprocessing

_METHODS = "leader,kmeans,kmedoids,wkmedoids,powerbert,random,grid,tome"


def analyze(
    model: Annotated[str, typer.Argument(help="A saved model's folder, or a timm name.")],
    data: Prepared,
    out: Annotated[Path, typer.Option(help="Folder for PNG and CSV files.")] = Path("analysis"),
    split: Annotated[str, typer.Option(help="train, minival or val.")] = "minival",
    images: Annotated[int, typer.Option(min=1, help="How many images to measure on.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    schedule: Annotated[
        str | None,
        typer.Option(
            help='For costs and token maps, "49,40,…"; default the model\'s own, or rate 0.85.'
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="For the same; default the model's own.")
    ] = None,
    methods: Annotated[str, typer.Option(help="For the error curves, comma-separated.")] = _METHODS,
    maps: Annotated[int, typer.Option(min=1, help="Images to draw token maps on.")] = 4,
    arch: Arch = None,
    as_json: AsJson = False,
) -> None:
    """Cost breakdown, low-pass and redundancy measurements, reconstruction error, token maps."""
    import tokenpool as tp  # here, as torch takes seconds
    from pipelines.data.preprocessing import preprocessing_of
    from pipelines.data.split_batches import split_batches
    from pipelines.models.open_model import open_model
    from tokenpool.patches import patches_of
    from tokenpool.study import analysis, plots

    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give another --out folder")
    check_writable(out)
    vit = open_model(model, arch)
    view = preprocessing_of(vit, load_manifest(data))
    Console(stderr=True).print(str(view), markup=False, highlight=False, soft_wrap=True)
    try:
        pooling = tp.pooling_of(vit)
        depth, patches = len(vit.blocks), patches_of(vit).number
        if schedule is not None:
            own = tp.Schedule.parse(schedule)
        elif pooling is not None:
            own = pooling.schedule
        else:
            own = tp.Schedule.constant_rate(depth, patches, 0.85)
        chosen = method or (pooling.method if pooling else "leader")
        named = methods.split(",")
        dense = tp.macs(vit, tp.Schedule.dense(depth, patches))
        tp.pool(vit, own, chosen)
        for name in named:
            tp.macs(vit, own, name)
    except ValueError as error:
        raise UserError(str(error)) from None
    pooled = tp.macs(vit)
    pixels = list(_first(split_batches(data, split, view, batch_size), view, images))
    low_pass = analysis.low_pass(vit, pixels)
    grid = patches_of(vit).grid_size or (0, 0)
    ks = sorted({max(1, round(patches * share)) for share in (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)})
    errors = analysis.error_by_k(vit, pixels, ks, named)
    drawn = pixels[0][:maps]
    shades = drawn.expand(-1, 3, -1, -1)  # of one channel: grey
    _, found = tp.trace(vit, drawn)
    shown = sorted({layer.block for layer in found.layers})
    shown = shown[:: max(1, len(shown) // 4)]
    assignments = {f"after block {b + 1}": found.assignment(after=b) for b in shown}

    costs = [
        {"model": name, "component": part, "macs": value, "share": share}
        for name, report in (("dense", dense), ("pooled", pooled))
        for part, value, share in report.shares()
    ]
    tables: dict[str, list[dict[str, Any]]] = {
        "costs": costs,
        "low_pass": [asdict(row) for row in low_pass],
        "reconstruction_error": [asdict(row) for row in errors],
    }
    out.mkdir(parents=True, exist_ok=True)
    # Put in place when all are whole.
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=out) as folder:
        aside = Path(folder)
        for name, rows in tables.items():
            with (aside / f"{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]) if rows else [])
                writer.writeheader()
                writer.writerows(rows)
        plots.plot_costs({"dense": dense, chosen: pooled}, aside / "costs.png")
        plots.plot_low_pass(low_pass, aside / "low_pass.png")
        plots.plot_errors(errors, aside / "reconstruction_error.png")
        plots.plot_token_maps(shades, assignments, grid, aside / "token_maps.png")
        for made in aside.iterdir():
            made.replace(out / made.name)
    if as_json:
        typer.echo(json.dumps({**tables, "schedule": str(own), "method": chosen, "out": str(out)}))
        return
    _print(dense, pooled, chosen, own, low_pass, out)


def _first(
    batches: Iterable[tuple[Tensor, Tensor]], view: Preprocessing, count: int
) -> Iterator[Tensor]:
    """The first so many images, normalised, in batches."""
    for images, _ in batches:
        yield view(images[:count])
        count -= len(images)
        if count <= 0:
            return


def _print(
    dense: Any, pooled: Any, method: str, schedule: Any, low_pass: list[Any], out: Path
) -> None:
    console = Console()
    shown = table(
        f"GMACs per image; pooled by {method}: {schedule}",
        ("component", "dense", "%", "pooled", "%"),
        left=("component",),
    )
    for (part, before, share), (_, after, rest) in zip(
        dense.shares(), pooled.shares(), strict=True
    ):
        shown.add_row(
            part,
            f"{before / 1e9:.4f}",
            f"{100 * share:.1f}",
            f"{after / 1e9:.4f}",
            f"{100 * rest:.1f}",
        )
    shown.add_row("total", f"{dense.gmacs:.4f}", "100.0", f"{pooled.gmacs:.4f}", "100.0")
    console.print(shown)
    headings = ("layer", "high freq. in", "out", "cosine in", "out", "tokens: high freq.", "cosine")
    shown = table("Attention as a low-pass filter", headings)
    for row in low_pass:
        layer, *values = asdict(row).values()
        shown.add_row(str(layer), *(f"{value:.3f}" for value in values))
    console.print(shown)
    console.print(f"plots and numbers: {out}/")
