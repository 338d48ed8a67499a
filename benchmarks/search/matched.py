"""What a finished search saves at equal top-1 on val, against the plain model of each width.

The front is chosen on minival; val decides what is as good. The plain model of a width is its base,
or that base trained on as long as the finals (`finals.constant_rates: [1]`), whichever is better.
(The paper's headline: 42 % fewer MACs at DeiT-Ti's accuracy.)

    tokenpool prepare glyphs runs/data/glyphs-sparse --count 50000 --size 32 \\
        --glyph-scale 0.4 --clutter 0.4
    tokenpool search tune_spaces/presets/glyphs-sparse.yaml
    python -m benchmarks.search.matched glyphs-sparse --out FILE
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.machine import command_line, hardware
from pipelines.results.front import Point, build_front
from pipelines.results.matched import matched
from pipelines.search.state import load_state
from pipelines.storage.search_files import Search


def main(
    name: Annotated[str, typer.Argument(help="A finished search.")],
    out: Annotated[Path, typer.Option(help="Write the result there as JSON.")],
    storage: Annotated[Path, typer.Option(help="Where it is kept.")] = Path("runs"),
) -> None:
    """Write and print."""
    state = load_state(Search(storage, name))
    front = build_front(state)
    rows = matched(front)
    result = {
        **hardware("cpu"),
        "date": time.strftime("%Y-%m-%d"),
        "command": command_line(),
        "search": name,
        "val_images": state.images.get("val"),
        "device_seconds": {stage: round(s) for stage, s in state.stage_seconds.items()},
        "matched": [
            {
                "plain": _row(row.plain),
                "pooled": None if row.pooled is None else _row(row.pooled),
                "fewer_gmacs": None if row.saved is None else round(row.saved, 4),
            }
            for row in rows
        ],
        "front": [_row(point) for point in front.on_front],
        "others": [_row(p) for p in front.points if p.finished and not p.on_front],
        "config": state.config.resolved(),
    }
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for row in rows:
        print(row.text)


def _row(point: Point) -> dict[str, object]:
    row = point.as_dict()
    wanted = ["id", "kind", "width", "method", "schedule", "gmacs", "top1_minival", "top1_val"]
    wanted += ["top1_val_std", "seeds", "epochs", "latency_ms_b1", "latency_ms_b128"]
    return {name: row[name] for name in wanted if name in row}


if __name__ == "__main__":
    typer.run(main)
