"""`tokenpool bench search`: our search against its peers, on the same evaluations."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pipelines.commands.benchmarks_room import benchmarks_room, check_device


def bench_search(
    worlds: Annotated[
        list[str] | None,
        typer.Argument(
            help="digits, glyphs, glyphs-large, real, or a YAML file. Default: the first two."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting: evaluations=100. May be repeated."),
    ] = None,
    contenders: Annotated[
        list[str] | None, typer.Option("--only", help="A contender; may be repeated. Default: all.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    cache: Annotated[
        Path, typer.Option(help="Where what was computed is kept: typed again, the bench goes on.")
    ] = Path("runs/bench-search"),
    out: Annotated[
        Path, typer.Option(help="Where search-NAME.json, .md and .png are written.")
    ] = Path("runs/bench-search/results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Hypervolume against device-seconds: ours, random, constant, PoWER-BERT, Optuna, ASHA.

    Every contender fine-tunes schedules from the same dense bases and measures them on minival;
    each is charged the device-seconds of all it runs, ours its calibration and screening too.
    `real` searches schedules of a trained ViT on real pictures without training.
    """

    with benchmarks_room():
        from benchmarks.search.comparison import bench
        from benchmarks.search.config import BenchConfig
        from benchmarks.search.run import CONTENDERS
        from benchmarks.search.untrained import CONTENDERS as UNTRAINED
        from benchmarks.search.untrained import RealConfig
        from benchmarks.search.untrained_report import bench_real
    from pipelines.config_file import load_as

    check_device(device)
    console = Console(stderr=True, highlight=False)
    results = []
    for world in worlds or ["digits", "glyphs"]:
        shared: dict[str, Any] = {
            "cache": cache,
            "out": out,
            "device": device,
            "say": lambda text: console.print(text, markup=False, soft_wrap=True),
        }
        if world == "real":
            real = load_as(RealConfig, config_file(world), overrides)
            result, files = bench_real(real, names=contenders or list(UNTRAINED), **shared)
        else:
            config = load_as(BenchConfig, config_file(world), overrides)
            result, files = bench(config, names=contenders or list(CONTENDERS), **shared)
        results.append(result)
        if not as_json:
            sys.stdout.write(files[1].read_text(encoding="utf-8"))
            console.print(f"written: {', '.join(str(file) for file in files)}", soft_wrap=True)
    if as_json:
        sys.stdout.write(json.dumps(results, ensure_ascii=False, indent=1) + "\n")


def config_file(world: str) -> Path:
    """The preset of that name, or the file."""
    from importlib.resources import files

    preset = Path(str(files("tune_spaces") / "presets" / f"bench-{world}.yaml"))
    return preset if preset.is_file() else Path(world)
