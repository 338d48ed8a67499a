"""`tokenpool bench loader`: our loader beside its own limit and what others use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipelines.commands.benchmarks_room import benchmarks_room, show_result
from pipelines.console import table


def bench_loader(
    cores: Annotated[int, typer.Option(help="Cores, and threads or processes, for each.")] = 2,
    images: Annotated[int, typer.Option(help="Photographs of 500×375 to make.")] = 1000,
    image_size: Annotated[int, typer.Option(help="Side of the training crops.")] = 224,
    turns: Annotated[int, typer.Option(help="Turns each contender takes; medians count.")] = 5,
    source: Annotated[
        Path | None, typer.Option(help="A folder train/CLASS/IMAGE to read instead.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the result there as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Images per second of this loader, bare libjpeg-turbo, torchvision, timm and FFCV's own.

    The same images, kind of crops and cores in one run, in turns. The bare decoder decodes whole
    files; this loader only what a crop needs, so it can pass it. torchvision runs twice: as usual
    (normalised on the CPU), and spared that, as this loader is (uint8).
    """
    with benchmarks_room():
        from benchmarks.loader.loader_speed import run

    with Console(stderr=True).status("starting") as spinner:
        result = run(
            cores=cores,
            images=images,
            image_size=image_size,
            turns=turns,
            source=source,
            progress=spinner.update,
        )
    shown = table(
        f"{image_size} px training crops on {cores} cores, {result['hardware']}",
        ("loader", "images/s", "of bare decoding", "CPU ms/image", "first batch, s"),
        left=("loader",),
    )
    limit = result["rows"][0]["images_per_s"]
    for row in result["rows"]:
        shown.add_row(
            row["name"],
            f"{row['images_per_s']:,.0f}",
            f"{row['images_per_s'] / limit:.0%}",
            f"{row['cpu_ms_per_image']:.2f}",
            f"{row['first_batch_s']}",
        )
    show_result(result, "loader", out, as_json, shown, ".2f")
