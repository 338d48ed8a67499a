"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(help="The search.")]
NameOrFolder = Annotated[
    str, typer.Argument(help="A search, or the folder of a saved or squeezed model.")
]
Storage = Annotated[
    str,
    typer.Option(
        "--storage",
        help="What keeps the searches: a folder, or an address (s3://bucket/runs).",
        envvar="TOKENPOOL_RUNS",
    ),
]
MovedData = Annotated[
    Path | None,
    typer.Option(help="Prepared data: of a search, if it was moved; of a folder, always."),
]
Prepared = Annotated[Path, typer.Argument(help="A folder that `tokenpool prepare` made.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting: finals.trials=12. May be repeated."),
]
Arch = Annotated[
    str | None, typer.Option(help="timm's name of the model that plain weights are of.")
]
ClassMap = Annotated[
    Path | None,
    typer.Option(help="File of the data's class names in the model's order (docs/weights.md)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
