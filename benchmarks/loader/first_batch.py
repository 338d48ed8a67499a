"""Seconds to the first batch in a fresh process: `python -m benchmarks.loader.first_batch DATA`.

A trial's start is waited for, so what each loader costs before its first batch counts: ours as
it is after `prepare`, ours on a machine that has to compile its decoder first (and to check the
betons' sha256), and FFCV's own loader, which compiles every time.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.machine import command_line, machine_facts

_OURS = """
import time; start = time.perf_counter()
import torch
after_torch = time.perf_counter()
from pathlib import Path
from pipelines.data.loader import make_loader
from pipelines.data.compiled import native_available
native_available()
after_import = time.perf_counter()
loader = make_loader(Path({data!r}), "train", batch_size=64, train=True, image_size=32,
                     geometry="crop", implementation="ffcv")
next(iter(loader))
end = time.perf_counter()
loader.close()
"""
_FFCV = """
import time; start = time.perf_counter()
import torch
after_torch = time.perf_counter()
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import ToTensor, ToTorchImage
after_import = time.perf_counter()
loader = Loader({data!r} + "/train.beton", 64, 1, True, OrderOption.RANDOM, pipelines=dict(
    image=[RandomResizedCropRGBImageDecoder((32, 32)), ToTensor(), ToTorchImage()],
    label=[IntDecoder(), ToTensor()]))
for _ in loader:
    end = end if "end" in dir() else time.perf_counter()
"""
_TELL = """
import json
print(json.dumps([after_torch - start, after_import - after_torch, end - after_import]))
"""


def main(
    data: Annotated[Path, typer.Argument(help="Prepared data, digits say.")],
    turns: Annotated[int, typer.Option(help="Fresh processes each; medians count.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Write the result there as JSON.")] = None,
) -> None:
    """Measure and print."""
    path = str(data.resolve())
    cases = {
        "tokenpool": (_OURS, False),
        "tokenpool, its decoder compiled first": (_OURS, True),
        "ffcv.Loader": (_FFCV, False),
    }
    times: dict[str, list[list[float]]] = {name: [] for name in cases}
    for turn in range(turns + 1):
        for name, (code, cold) in cases.items():
            with tempfile.TemporaryDirectory() as empty:
                environment = os.environ | ({"XDG_CACHE_HOME": empty} if cold else {})
                ran = subprocess.run(
                    [sys.executable, "-c", code.format(data=path) + _TELL],
                    env=environment, capture_output=True, text=True, check=True,
                )  # fmt: skip
            if turn:  # the first one fills the disk's cache
                times[name].append(json.loads(ran.stdout.splitlines()[-1]))
    rows: list[dict[str, Any]] = []
    for name, samples in times.items():
        torch_s, import_s, batch_s = (statistics.median(c) for c in zip(*samples, strict=True))
        rows.append(
            {
                "loader": name,
                "import_torch_s": round(torch_s, 2),
                "import_loader_s": round(import_s, 2),
                "first_batch_s": round(batch_s, 2),
                "beyond_torch_s": round(import_s + batch_s, 2),
            }
        )
        print(json.dumps(rows[-1]))
    if out is not None:
        result = machine_facts(1) | {"command": command_line(), "rows": rows}
        out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
