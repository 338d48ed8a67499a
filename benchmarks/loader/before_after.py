"""Whether `prepare` or the loader got slower.

    python -m benchmarks.loader.before_after BEFORE --out FILE

BEFORE is a checkout of an older commit. Both trees prepare the same photographs and read an epoch
of what they prepared, with the same Python, in turns (before, after, after, before), each in a
process of its own. A machine is seldom idle: besides the images per second there are those per
second of CPU time, which others on the machine change little. Medians, and the median of the
turns' ratios.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.loader.photos import make_photos
from benchmarks.machine import command_line, machine_facts

_PREPARE = """
import os, sys, time
from pathlib import Path
from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare

options = PrepareOptions(minival=0.05, val=0.1, workers=int(sys.argv[3]), skip_bad=True)
start, own = time.perf_counter(), sum(os.times()[:4])
prepare(sys.argv[1], Path(sys.argv[2]), options)
print(time.perf_counter() - start, sum(os.times()[:4]) - own)
"""

_LOAD = """
import os, sys, time
from pathlib import Path
from pipelines.data.loader import make_loader

loader = make_loader(
    Path(sys.argv[1]), "train", batch_size=64, train=True, num_threads=int(sys.argv[3]),
    image_size=224, geometry="crop", implementation=sys.argv[2],
)
epoch = lambda number: loader.set_epoch(number) or sum(len(images) for images, _ in loader)
epoch(0)
start, own = time.perf_counter(), sum(os.times()[:4])
count = sum(epoch(number) for number in (1, 2, 3))
print((time.perf_counter() - start) / count, (sum(os.times()[:4]) - own) / count)
"""


def main(
    before: Annotated[Path, typer.Argument(help="Checkout of the commit to compare with.")],
    images: Annotated[int, typer.Option(help="Photographs, of 256 by 192 px.")] = 3000,
    turns: Annotated[int, typer.Option(help="Turns of four runs.")] = 8,
    workers: Annotated[int, typer.Option(help="Processes, or threads of the loader.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Write the result there as JSON.")] = None,
) -> None:
    """Measure and print."""
    trees = {"before": before.resolve(), "after": Path(__file__).resolve().parents[2]}
    result: dict[str, Any] = machine_facts(workers) | {
        "command": command_line(),
        **{name: commit(tree) for name, tree in trees.items()},
        "images": images,
        "workers": workers,
    }
    with tempfile.TemporaryDirectory(prefix="tokenpool-bench-") as scratch:
        source = Path(scratch, "photos")
        make_photos(source, images, 256, 192)

        def prepare(name: str) -> tuple[float, float]:
            target = Path(scratch, f"prepared-{name}")
            shutil.rmtree(target, ignore_errors=True)
            wall, own = run(trees[name], _PREPARE, source, target, workers)
            return images / wall, images / own

        def load(decoder: str, name: str) -> tuple[float, float]:
            wall, own = run(trees[name], _LOAD, Path(scratch, f"prepared-{name}"), decoder, workers)
            return 1 / wall, 1 / own

        # The first run of each is not counted: Python compiles its bytecode in it, once.
        result["prepare"] = compare(prepare, turns)
        for decoder in ("ffcv", "torchvision"):
            result[f"loader, {decoder}"] = compare(partial(load, decoder), turns)
    text = json.dumps(result, indent=2) + "\n"
    print(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")


def run(tree: Path, script: str, *arguments: object) -> tuple[float, float]:
    """Seconds on the clock and of CPU time that a script prints which imports from a tree."""
    scratch = tempfile.gettempdir()
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        "PYTHONPYCACHEPREFIX": str(Path(scratch, "tokenpool-bench-bytecode")),
        "PYTHONDONTWRITEBYTECODE": "",
    }
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=scratch, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    wall, own = map(float, done.stdout.split()[-2:])
    return wall, own


def compare(measure: Callable[[str], tuple[float, float]], turns: int) -> dict[str, Any]:
    """Images per second on the clock and of CPU time, of both trees in turns."""
    for name in ("before", "after"):
        measure(name)
    rows = []
    for _ in range(turns):
        first, second, third, fourth = map(measure, ("before", "after", "after", "before"))
        rows += [(first, second), (fourth, third)]
    return {
        "images_per_s": summary([(before[0], after[0]) for before, after in rows]),
        "images_per_cpu_s": summary([(before[1], after[1]) for before, after in rows]),
    }


def summary(rows: list[tuple[float, float]]) -> dict[str, Any]:
    """Medians of both, and of their ratios."""
    return {
        "before": round(statistics.median(before for before, _ in rows), 1),
        "after": round(statistics.median(after for _, after in rows), 1),
        "after_to_before": round(statistics.median(after / before for before, after in rows), 3),
        "turns": [[round(before, 1), round(after, 1)] for before, after in rows],
    }


def commit(tree: Path) -> str:
    """The commit of a checkout, with a mark where it was changed since."""
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    typer.run(main)
