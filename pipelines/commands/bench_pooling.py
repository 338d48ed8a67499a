"""`tokenpool bench pooling`: how much faster pooled models really are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipelines.errors import UserError


def pooling(
    model: Annotated[str, typer.Option(help="A timm name; weights are random.")] = (
        "deit_small_patch16_224"
    ),
    mode: Annotated[
        list[str] | None, typer.Option(help="fp32-eager, bf16-eager, fp32-compiled; default all.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Timed batches of each variant.")] = 7,
    rate: Annotated[float, typer.Option(help="Keep rate of the schedule the rows share.")] = 0.93,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; on a busy machine use 1.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Append the rows to this JSON-lines file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Images/s, realised speed-up ÷ MAC ratio, time of pooling alone, peak memory, side by side."""
    import torch

    from tokenpool import benchmark

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("there is no CUDA device: use --device cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console(stderr=True)
    rows: list[dict[str, Any]] = []
    try:
        with console.status("starting") as status:
            for row in benchmark.run(
                model,
                modes=tuple(mode) if mode else benchmark.MODES,
                batch=batch_size,
                rounds=rounds,
                rate=rate,
                device=device,
                progress=status.update,
            ):
                rows.append(row)
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error).splitlines()[0]) from None
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    headings = (
        "mode",
        "variant",
        "img/s",
        "speed-up",
        "MACs",
        "realised",
        "pooling ms",
        "peak MiB",
    )
    table = Table(title=f"{model}, batch {batch_size}, {rows[0]['hardware']}")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("mode", "variant") else "right")
    for row in rows:
        alone = row["pooling_ms"]
        table.add_row(
            row["mode"],
            row["variant"],
            f"{row['images_per_second']:.1f}",
            f"{row['speedup']:.2f}",
            f"{row['mac_ratio']:.2f}",
            f"{row['realised']:.2f}",
            "" if alone is None else f"{alone:.1f}",
            f"{row['peak_mib']:.0f}",
        )
    Console().print(table)
