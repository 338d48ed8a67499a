"""`tokenpool bench quality`: the paper's comparison, its methods and ours fine-tuned alike."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from pipelines.commands.benchmarks_room import benchmarks_room, check_device


def bench_quality(
    data: Annotated[
        str, typer.Option(help="glyphs, digits, real, or a folder that prepare made.")
    ] = "glyphs",
    scale: Annotated[
        Literal["small", "full"],
        typer.Option(help="small: two cores. full: a GPU; needs --device cuda."),
    ] = "small",
    config_file: Annotated[
        Path | None, typer.Option("--config", help="A YAML file in place of the preset.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting: seeds=1. May be repeated."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Torch's; default all cores.")] = None,
    cache: Annotated[
        Path, typer.Option(help="Where what was computed is kept: typed again, the bench goes on.")
    ] = Path("runs/bench-quality"),
    out: Annotated[
        Path, typer.Option(help="Where quality-NAME.json, .md and .png are written.")
    ] = Path("runs/bench-quality/results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Top-1 of every method and schedule after the same fine-tuning, at equal K and cost.

    Base models, K for each cost, the same fine-tuning for all: the paper's protocol, with its
    methods and ours, the dense models fine-tuned as long, several widths and seeds. Intervals are
    over images and seeds.
    """
    import torch

    with benchmarks_room():
        from benchmarks.quality.comparison import compare
        from benchmarks.quality.presets import load_config

    check_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console(stderr=True, highlight=False)

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    config = load_config(data, scale, config_file, overrides or [], say)
    found, files = compare(config, cache=cache, out=out, device=device, say=say)
    if as_json:
        sys.stdout.write(json.dumps(found, ensure_ascii=False, indent=1) + "\n")
        return
    sys.stdout.write(files[1].read_text(encoding="utf-8"))
    say(f"written: {', '.join(str(file) for file in files)}")
