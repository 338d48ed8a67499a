"""The package `benchmarks`, which `tokenpool bench` alone calls, and what it gives."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.errors import UserError


def check_device(device: str) -> None:
    """Raises UserError where there is no such device."""
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: use cpu or cuda")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda: torch sees no CUDA device here")


@contextmanager
def benchmarks_room() -> Iterator[None]:
    """Imports from the benchmarks belong in this block.

    Raises:
        UserError: they are not installed, or another package has their name.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "benchmarks":
            raise
        raise UserError(
            f"tokenpool's {error.name} is not installed here: `make install` in a clone, or "
            "`pip install` of it, installs the benchmarks as well",
            exit_code=1,
        ) from error


def show_result(
    result: dict[str, Any], what: str, out: Path | None, as_json: bool, table: Table, ratios: str
) -> None:
    """Keeps a result with the command that made it, and prints it.

    Args:
        result: of a benchmark; its `ratios` are shown below the table.
        what: of `tokenpool bench`.
        out: also written there as JSON.
        as_json: printed as JSON in place of the table.
        table: of the result.
        ratios: how one is written.
    """
    result["command"] = f"tokenpool bench {what} {' '.join(sys.argv[3:])}".rstrip()
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    if as_json:
        sys.stdout.write(text)
        return
    console = Console()
    console.print(table)
    for name, ratio in result["ratios"].items():
        console.print(f"{ratio:{ratios}} {name}", highlight=False)
