"""What no pooling method can beat: a DeiT that keeps the first k tokens of each layer, for nothing.

Its speed-up over the dense model, beside the ratio of their MACs, tells how much of the counted
saving the machine's matrix products give at such shapes; the methods are timed beside it.

On an idle machine:

    python -m benchmarks.pooling.floor --out benchmarks/results/pooling-floor.jsonl
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

import tokenpool as tp
from benchmarks.machine import command_line, hardware
from pipelines.search.timing import seconds_of

SCHEDULE = (182, 170, 158, 147, 136, 127, 118, 110, 102, 95, 88, 82)
METHODS = ("leader", "tome(position=attention)", "powerbert(position=attention,significance=cls)")


class Free(torch.nn.Module):
    """The model with all but the first k patch tokens cut off between attention and MLP."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        vit = self.model
        x = vit._pos_embed(vit.patch_embed(images))
        for block, kept in zip(vit.blocks, SCHEDULE, strict=True):
            x = x + block.attn(block.norm1(x))
            x = x[:, : kept + 1].contiguous()
            x = x + block.mlp(block.norm2(x))
        logits: Tensor = vit.head(vit.norm(x)[:, 0])
        return logits


def measured(mode: str, batch: int, rounds: int, threads: int) -> dict[str, Any]:
    """Milliseconds and speed-ups of all, interleaved, medians over the rounds."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if mode.startswith("bf16") else torch.float32
    model = timm.create_model("deit_small_patch16_224").eval().to(dtype)
    images = torch.randn(batch, 3, 224, 224).to(dtype)
    runs: dict[str, Callable[[Tensor], Tensor]] = {"dense": model, "free": Free(model)}
    for method in METHODS:
        runs[method] = tp.pool(copy.deepcopy(model), SCHEDULE, method)
    if mode.endswith("compiled"):
        runs = {name: torch.compile(run, dynamic=False) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for turn in range(rounds + 2):
            for name, run in runs.items():
                took = seconds_of(partial(run, images), "cpu")
                if turn >= 2:
                    times[name].append(took)
    dense = times["dense"]
    return {
        "mode": mode,
        "batch": batch,
        "ms": {name: round(1000 * statistics.median(t), 2) for name, t in times.items()},
        "speedup": {
            name: round(statistics.median(d / o for d, o in zip(dense, t, strict=True)), 3)
            for name, t in times.items()
        },
        "macs_ratio": {
            name: round(_ratio(model, None if name in ("dense", "free") else name, name), 3)
            for name in times
        },
        "rounds": rounds,
        "threads": threads,
    }


def _ratio(model: Any, method: str | None, name: str) -> float:
    dense = tp.macs(model, tp.Schedule.dense(12, 196)).total
    if name == "dense":
        return 1.0
    found = tp.macs(model, SCHEDULE, method or METHODS[1])
    return dense / (found.total - (found.clustering if method is None else 0))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to append to")
    parser.add_argument("--mode", nargs="+", default=["fp32-eager", "bf16-eager", "fp32-compiled"])
    parser.add_argument("--batch-size", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    facts = {**hardware("cpu"), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    for mode in given.mode:
        for batch in given.batch_size:
            row = measured(mode, batch, given.rounds, given.threads)
            row |= facts | {"command": command_line()}
            print(mode, batch, row["speedup"], flush=True)
            with given.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
