"""What pooling's options are worth at equal cost, on trained models without fine-tuning.

Every variant pools each model by the dearest schedule of constant keep-rate within a share of the
dense model's MACs, its own clustering counted: a variant that costs less keeps more tokens.

    python -m benchmarks.pooling.options --data DATA --out FILE MODEL [MODEL ...]

MODEL is a folder that `tokenpool.save` wrote, such as a base of a search.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer

import tokenpool as tp
from benchmarks.machine import command_line, hardware
from pipelines.config import DataConfig
from pipelines.search.scorer import Scorer

SHARES = (0.4, 0.5, 0.6, 0.7)
_MEANS = "representative=mean"
_KEYS = "features=keys,position=attention"
_INSIDE = "position=attention"
_PROPORTIONAL = "proportional_attention=true"
METHODS = (
    "leader",
    "wkmedoids",
    "wkmedoids(start=matching)",
    f"wkmedoids(start=matching,{_MEANS})",
    f"wkmedoids(start=matching,{_KEYS})",
    f"wkmedoids(start=matching,{_KEYS},{_MEANS})",
    f"wkmedoids(start=matching,{_KEYS},{_MEANS},{_PROPORTIONAL})",
    f"wkmedoids(start=matching,{_INSIDE},{_MEANS})",
    f"wkmedoids(start=matching,{_INSIDE},{_MEANS},{_PROPORTIONAL})",
    "kmeans(start=matching)",
    f"kmeans(start=matching,{_PROPORTIONAL})",
    f"kmeans(start=matching,{_INSIDE})",
    f"kmeans(start=matching,{_INSIDE},{_PROPORTIONAL})",
    f"kmeans(start=matching,{_INSIDE},{_PROPORTIONAL},iterations=1)",
    "tome",
    f"agglomerative({_INSIDE},{_PROPORTIONAL})",
)


def main(
    models: Annotated[list[Path], typer.Argument(help="Saved dense models.")],
    data: Annotated[Path, typer.Option(help="Folder that `tokenpool prepare` made.")],
    out: Annotated[Path, typer.Option(help="Write the rows there as JSON.")],
    threads: Annotated[int, typer.Option(help="Of torch.")] = 1,
) -> None:
    """Scores every variant on minival; writes and prints."""
    torch.set_num_threads(threads)
    result = {
        **hardware("cpu"),
        "date": time.strftime("%Y-%m-%d"),
        "command": command_line(),
        "models": [measured(model, data) for model in models],
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measured(folder: Path, data: Path) -> dict[str, object]:
    """One model, dense and by every variant."""
    model = tp.load(folder)
    spec = tp.vit_spec(model)
    side = spec.grid[0] * model.patch_embed.patch_size[0]
    scorer = Scorer(
        {0: model}, DataConfig(path=data, image_size=side), batch_size=128, num_threads=None
    )
    ((dense, _),) = scorer.score(0, [(spec.patches,) * spec.depth], "grid")
    print(f"width {spec.width}: {dense:.2%} dense on {scorer.num_images()} images of minival")
    rows = []
    for method in METHODS:
        row: dict[str, object] = {"method": method}
        found = []
        for share in SHARES:
            schedule = _within(spec, method, share)
            ((top1, _),) = scorer.score(0, [tuple(schedule)], method)
            row[f"{share:.0%}"] = {"schedule": list(schedule), "top1": round(top1, 4)}
            found.append(f"{top1:.2%}")
        rows.append(row)
        print("  ".join([*found, method]))
    return {
        "width": spec.width,
        "images": scorer.num_images(),
        "dense": round(dense, 4),
        "rows": rows,
    }


def _within(spec: tp.VitSpec, method: str, share: float) -> tp.Schedule:
    """The dearest schedule of constant keep-rate, in steps of a thousandth."""
    dense = tp.vit_macs(spec, tp.Schedule([spec.patches] * spec.depth), "grid").gmacs
    for schedule in _constant(spec):
        if tp.vit_macs(spec, schedule, method).gmacs <= share * dense:
            return schedule
    raise SystemExit(f"no schedule of {method} costs {share:.0%} of the dense model")


def _constant(spec: tp.VitSpec) -> Iterator[tp.Schedule]:
    for thousandths in range(999, 100, -1):
        yield tp.Schedule.constant_rate(spec.depth, spec.patches, thousandths / 1000)


if __name__ == "__main__":
    typer.run(main)
