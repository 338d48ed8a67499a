"""Whether `prepare` got slower: `python benchmarks/prepare_rate.py BEFORE --out FILE`.

BEFORE is a checkout of an older commit. Both trees prepare the same photographs with the same
Python, in turns (before, after, after, before), each in a process of its own. A machine is seldom
idle: besides the images per second there are those per second of CPU time of `prepare` and its
workers, which others on the machine change little. Medians, and the median of the turns' ratios.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.data.bench_loader import machine_facts, make_photos

_RUN = """
import os, sys, time
from pathlib import Path
from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare

options = PrepareOptions(minival=0.05, val=0.1, workers=int(sys.argv[3]), skip_bad=True)
start, own = time.perf_counter(), sum(os.times()[:4])
prepare(sys.argv[1], Path(sys.argv[2]), options)
print(time.perf_counter() - start, sum(os.times()[:4]) - own)
"""


def main(
    before: Annotated[Path, typer.Argument(help="Checkout of the commit to compare with.")],
    images: Annotated[int, typer.Option(help="Photographs, of 256 by 192 px.")] = 3000,
    turns: Annotated[int, typer.Option(help="Turns of four runs.")] = 8,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Write the result there as JSON.")] = None,
) -> None:
    """Measure and print."""
    after = Path(__file__).parents[1]
    rates: dict[str, list[tuple[float, float]]] = {"before": [], "after": []}
    with tempfile.TemporaryDirectory(prefix="tokenpool-bench-") as scratch:
        source = Path(scratch, "photos")
        make_photos(source, images, 256, 192)
        for tree in (before, after):  # compiled to bytecode once, as installed programs are
            run(tree, source, Path(scratch, "first"), workers)
        for turn in range(turns):
            for name in ("before", "after", "after", "before"):
                tree = before if name == "before" else after
                seconds = run(tree, source, Path(scratch, f"{turn}-{name}"), workers)
                rates[name].append((images / seconds[0], images / seconds[1]))
            print(turn, {name: rates[name][-2:] for name in rates}, flush=True)
    result: dict[str, Any] = machine_facts(workers) | {
        "command": " ".join(["python", *sys.argv]),
        "before": commit(before),
        "after": commit(after),
        "images": images,
        "workers": workers,
        "images_per_s": summary([{n: r[0] for n, r in pair.items()} for pair in pairs(rates)]),
        "images_per_cpu_s": summary([{n: r[1] for n, r in pair.items()} for pair in pairs(rates)]),
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")


def run(tree: Path, source: Path, target: Path, workers: int) -> tuple[float, float]:
    """Seconds on the clock and of CPU time that one tree takes."""
    environment = os.environ | {
        "PYTHONPATH": str(tree.resolve()),
        "PYTHONPYCACHEPREFIX": str(source.with_name("bytecode")),
        "PYTHONDONTWRITEBYTECODE": "",
    }
    command = [sys.executable, "-c", _RUN, str(source), str(target), str(workers)]
    done = subprocess.run(
        command, cwd=source.parent, env=environment, check=True, capture_output=True, text=True
    )
    shutil.rmtree(target)
    wall, own = map(float, done.stdout.split()[-2:])
    return wall, own


def pairs(rates: dict[str, list[tuple[float, float]]]) -> list[dict[str, tuple[float, float]]]:
    """What ran next to each other."""
    return [
        {"before": before, "after": after}
        for before, after in zip(rates["before"], rates["after"], strict=True)
    ]


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of both, and of their ratios."""
    return {
        "before": round(statistics.median(row["before"] for row in rows), 1),
        "after": round(statistics.median(row["after"] for row in rows), 1),
        "after_to_before": round(statistics.median(r["after"] / r["before"] for r in rows), 3),
        "turns": [{name: round(rate, 1) for name, rate in row.items()} for row in rows],
    }


def commit(tree: Path) -> str:
    """The commit of a checkout, with a mark where it was changed since."""
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    typer.run(main)
