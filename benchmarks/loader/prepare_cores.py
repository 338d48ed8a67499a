"""How `prepare` scales over cores: `python -m benchmarks.loader.prepare_cores --out FILE`.

Photographs of 500×375 are prepared by one worker and by all, in turns, with their bytes kept and
shrunk to 256 px; medians of the turns. Efficiency is the rate of all over cores times that of one,
from the first listing to the finished directory: the start of the workers counts, and so does what
only one process can do. The run with one worker is bound to one core: else its writing and hashing
would go on beside the worker, and one core's rate would be that of more than one.

A machine is seldom idle. What other processes took of the cores is measured beside each run, and a
turn during which they took more than `--foreign` of it is thrown away and run again. Two figures
are given: `efficiency` as it was, and `efficiency_of_time_left`, in which what others took of all
cores is not held against the run with all workers, nor in favour of it what one worker waited.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from benchmarks.loader.photos import make_photos
from benchmarks.machine import command_line, machine_facts
from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare


def main(
    images: Annotated[int, typer.Option(help="Files; 1,000 different ones, linked.")] = 12_000,
    turns: Annotated[int, typer.Option(help="Turns; medians count.")] = 3,
    foreign: Annotated[float, typer.Option(help="Share of the cores others may take.")] = 0.08,
    tries: Annotated[int, typer.Option(help="Turns begun at most, for each row.")] = 12,
    kinds: Annotated[str, typer.Option(help="kept, shrunk, or both.")] = "kept,shrunk",
    out: Annotated[Path | None, typer.Option(help="Write the result there as JSON.")] = None,
) -> None:
    """Measure and print."""
    cores = len(os.sched_getaffinity(0))
    result: dict[str, Any] = machine_facts(cores) | {"images": images, "rows": []}
    result["command"] = command_line()
    with tempfile.TemporaryDirectory(prefix="tokenpool-bench-") as scratch:
        source = Path(scratch) / "photos"
        make_photos(source, min(images, 1000))
        originals = sorted((source / "train").rglob("*.jpg"))
        for i in range(len(originals), images):
            original = originals[i % len(originals)]
            original.with_name(f"{i:06d}.jpg").hardlink_to(original)
        for kind in kinds.split(","):
            row = measure(source, Path(scratch), images, kind, turns, foreign, tries)
            result["rows"].append(row)
            print(json.dumps(row))
            if out is not None:
                text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
                out.write_text(text, encoding="utf-8")


class Turn(NamedTuple):
    """Seconds on the clock, own CPU seconds, and the share of all cores that others took."""

    wall: float
    own: float
    foreign: float


def measure(
    source: Path, scratch: Path, images: int, kind: str, turns: int, foreign: float, tries: int
) -> dict[str, Any]:
    """One row: the rates of one worker and of all, in turns, and what they say of each other."""
    resolution = {"kept": None, "shrunk": 256}[kind]
    every_core = sorted(os.sched_getaffinity(0))
    cores = len(every_core)
    turns_kept: dict[int, list[Turn]] = {1: [], cores: []}
    disturbed = 0
    for _ in range(tries):
        once: dict[int, Turn] = {}
        for workers in turns_kept:
            target = scratch / "out"
            options = PrepareOptions(
                minival=0, val=0, workers=workers, resolution=resolution, skip_bad=True
            )
            os.sched_setaffinity(0, every_core[:workers])
            start, busy, own = time.perf_counter(), busy_seconds(), own_seconds()
            prepare(str(source), target, options)
            wall, own = time.perf_counter() - start, own_seconds() - own
            others = max(0.0, busy_seconds() - busy - own)
            os.sched_setaffinity(0, every_core)
            shutil.rmtree(target)
            once[workers] = Turn(wall, own, others / (cores * wall))
        print(kind, {w: tuple(round(x, 3) for x in turn) for w, turn in once.items()}, flush=True)
        if any(turn.foreign > foreign for turn in once.values()):
            disturbed += 1
            continue
        for workers, turn in once.items():
            turns_kept[workers].append(turn)
        if len(turns_kept[1]) == turns:
            break
    if not turns_kept[1]:
        sys.exit(f"the machine was never idle in {tries} turns: run it again when it is")
    one = statistics.median(images / turn.wall for turn in turns_kept[1])
    every = statistics.median(images / turn.wall for turn in turns_kept[cores])
    had = statistics.median(turn.own for turn in turns_kept[1])
    left = statistics.median(cores * t.wall * (1 - t.foreign) for t in turns_kept[cores])
    return {
        "what": {"kept": "bytes kept", "shrunk": "shrunk to 256 px"}[kind],
        "one_core_images_per_s": round(one, 1),
        "all_cores_images_per_s": round(every, 1),
        "efficiency": round(every / (cores * one), 3),
        "efficiency_of_time_left": round(had / left, 3),
        "turns": {
            w: [
                {
                    "images_per_s": round(images / turn.wall, 1),
                    "own_cpu_s": round(turn.own, 2),
                    "taken_by_others": round(turn.foreign, 3),
                }
                for turn in kept
            ]
            for w, kept in turns_kept.items()
        },
        "turns_thrown_away": disturbed,
    }


def busy_seconds() -> float:
    """CPU time that all processes, the kernel and the host have taken since the machine started."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    idle, waiting = fields[3], fields[4]
    return (sum(fields) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    typer.run(main)
