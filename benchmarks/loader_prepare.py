"""How `prepare` scales over cores: `python benchmarks/loader_prepare.py --out FILE`.

Photographs of 500×375 are prepared by one worker and by all, in turns, with their bytes kept and
shrunk to 256 px; medians of the turns. Efficiency is the rate of all over cores times that of one,
from the first listing to the finished directory: the start of the workers counts, and so does what
only one process can do. The run with one worker is bound to one core: else its writing and hashing
would go on beside the worker, and one core's rate would be that of more than one.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.data.bench_loader import machine_facts, make_photos
from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare


def main(
    images: Annotated[int, typer.Option(help="Files; 1,000 different ones, linked.")] = 12_000,
    turns: Annotated[int, typer.Option(help="Turns; medians count.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Write the result there as JSON.")] = None,
) -> None:
    """Measure and print."""
    every_core = os.sched_getaffinity(0)
    cores = len(every_core)
    result: dict[str, Any] = machine_facts(cores) | {"images": images, "rows": []}
    with tempfile.TemporaryDirectory(prefix="tokenpool-bench-") as scratch:
        source = Path(scratch) / "photos"
        make_photos(source, min(images, 1000))
        originals = sorted((source / "train").rglob("*.jpg"))
        for i in range(len(originals), images):
            original = originals[i % len(originals)]
            original.with_name(f"{i:06d}.jpg").hardlink_to(original)
        for name, resolution in (("bytes kept", None), ("shrunk to 256 px", 256)):
            rates: dict[int, list[float]] = {1: [], cores: []}
            for turn in range(turns):
                for workers in rates:
                    target = Path(scratch) / f"out-{resolution}-{turn}-{workers}"
                    options = PrepareOptions(
                        minival=0, val=0, workers=workers, resolution=resolution, skip_bad=True
                    )
                    os.sched_setaffinity(0, sorted(every_core)[:workers])
                    start = time.perf_counter()
                    prepare(str(source), target, options)
                    rates[workers].append(images / (time.perf_counter() - start))
                    os.sched_setaffinity(0, every_core)
            one, every = (statistics.median(rates[w]) for w in (1, cores))
            row = {
                "what": name,
                "one_core_images_per_s": round(one, 1),
                "all_cores_images_per_s": round(every, 1),
                "efficiency": round(every / (cores * one), 3),
                "turns": {w: [round(r, 1) for r in rs] for w, rs in rates.items()},
            }
            result["rows"].append(row)
            print(json.dumps(row))
    result["command"] = " ".join(["python", *sys.argv])
    if out is not None:
        out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
