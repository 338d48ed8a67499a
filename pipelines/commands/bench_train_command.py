"""`tokenpool bench train`: the training job beside the bare loop and timm's parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipelines.commands.benchmarks_room import benchmarks_room, show_result
from pipelines.console import table
from pipelines.errors import UserError


def bench_train(
    workers: Annotated[int, typer.Option(min=1, help="Processes of the job.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Threads torch has in each.")] = 1,
    loader_threads: Annotated[
        int, typer.Option(min=1, help="Decoding threads of each; timm: processes.")
    ] = 1,
    width: Annotated[int, typer.Option(help="Of the DeiT; the default is DeiT-Ti.")] = 192,
    heads: Annotated[int, typer.Option()] = 3,
    image_size: Annotated[int, typer.Option(help="Side of the crops.")] = 224,
    batch_size: Annotated[int, typer.Option(help="Images per step over all workers.")] = 32,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    compiled: Annotated[bool, typer.Option("--compile", help="torch.compile for all.")] = False,
    augment: Annotated[
        str, typer.Option(help="none or deit: what our job and timm's loop do to the images.")
    ] = "deit",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each; medians count.")] = 5,
    steps: Annotated[int, typer.Option(min=2, help="Steps of each turn.")] = 6,
    gpu: Annotated[bool, typer.Option("--gpu", help="A GPU for each worker.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the result there as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Images per second of a training job, the bare PyTorch loop, and a loop of timm's parts.

    The same model, photographs, batch, precision and cores in one run, in turns. The bare loop is
    DDP and AdamW on the same batches, without average of the weights, clipping or reports.
    """
    with benchmarks_room():
        from benchmarks.train.loops import BenchSpec
        from benchmarks.train.train_speed import run

    if precision not in ("fp32", "bf16") or augment not in ("none", "deit"):
        raise UserError("--precision is fp32 or bf16, --augment is none or deit")
    if batch_size % workers:
        raise UserError(f"--batch-size {batch_size} is not divisible by {workers} workers")
    spec = BenchSpec(
        width=width,
        heads=heads,
        image_size=image_size,
        batch_size=batch_size,
        workers=workers,
        threads=threads,
        loader_threads=loader_threads,
        precision=precision,
        compile=compiled,
        rounds=rounds,
        steps=steps,
        augment=augment,
        gpu=gpu,
    )
    with Console(stderr=True).status("starting") as status:
        result = run(spec, status.update)
    shown = table(
        f"width {width}, {image_size} px, {precision}, {result['hardware']}",
        ("loop", "images/s", "turns"),
        left=("loop",),
    )
    for row in result["rows"]:
        low, high = min(row["turns"]), max(row["turns"])
        shown.add_row(row["name"], f"{row['images_per_s']:,.1f}", f"{low:,.1f} to {high:,.1f}")
    show_result(result, "train", out, as_json, shown, ".1%")
