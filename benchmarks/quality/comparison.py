"""A whole comparison: cell after cell, files written as they come."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import hardware
from benchmarks.quality.cells import Bench, Row
from benchmarks.quality.config import QualityConfig
from benchmarks.quality.report import draw, markdown, matched
from pipelines.storage.durable import write_text

__all__ = ["compare"]


def compare(
    config: QualityConfig,
    *,
    cache: Path,
    out: Path,
    device: str,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], list[Path]]:
    """Measures what is not known yet.

    Args:
        config: of the comparison.
        cache: where bases and rows are kept.
        out: folder of the results, `quality-NAME.json`, `.md` and `.png`.
        device: where the models run.
        say: told of each cell.

    Returns:
        What was found, and the files.
    """
    bench = Bench(config, cache, device, say)
    rows: list[Row] = []
    cells = list(bench.cells())
    for number, cell in enumerate(cells, start=1):
        row = bench.measure(cell)
        rows.append(row)
        say(
            f"{number}/{len(cells)} width {row['width']} {row['method']} {row['shape']} "
            f"{row['share']:.0%} seed {row['seed']}: {row['top1']:.2%} "
            f"(before {row['top1_untrained']:.2%})"
        )
        if number == len(cells) or cells[number].seed != cell.seed:
            found, files = _write(config, rows, out, device)
    return found, files


def _write(
    config: QualityConfig, rows: list[Row], out: Path, device: str
) -> tuple[dict[str, Any], list[Path]]:
    facts = hardware(device)
    found = {
        **facts,
        "config": config.model_dump(mode="json"),
        "matched": matched(rows),
        "rows": rows,
    }
    files = [out / f"quality-{config.name}{end}" for end in (".json", ".md", ".png")]
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    head = json.dumps({k: v for k, v in found.items() if k != "rows"}, indent=1)
    write_text(files[0], f'{head[:-2]},\n "rows": [\n  {lines}\n ]\n}}\n')
    write_text(files[1], markdown(config, rows, facts))
    draw(config, rows, files[2])
    return found, files
