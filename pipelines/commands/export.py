"""`tokenpool export NAME TRIAL`: take a model away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.front import AsJson, Name, Storage
from pipelines.search.state import load_state
from pipelines.storage.working import open_root
from pipelines.track.explain import exportable
from pipelines.track.front import build_front


def export(
    name: Name,
    model: Annotated[str, typer.Argument(help="A trial's id, or dense-WIDTH; see `front`.")],
    format_name: Annotated[
        str, typer.Option("--format", help="timm, onnx or torch-export.")
    ] = "timm",
    out: Annotated[
        Path | None, typer.Option(help="A new folder; default exports/NAME-TRIAL-FORMAT.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The prepared data, if it was moved since the search.")
    ] = None,
    as_json: AsJson = False,
    storage: Storage = "runs",
) -> None:
    """Export a model, checked against PyTorch on real images, with a model card."""
    state = load_state(open_root(storage), name)
    exportable(build_front(state), model)
    from pipelines.track.export import export_point  # here, as torch takes seconds

    target = out or Path("exports") / f"{name}-{model}-{format_name}"
    facts = export_point(state, model, format_name, target, data=data)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    check = facts["check"]
    typer.echo(
        f"wrote {target}: logits within {check['largest_logit_difference']:.1e} of PyTorch's on "
        f"{check['images']} images"
    )
    for row in facts["speed"]["batches"]:
        typer.echo(f"  batch {row['batch']}: {row['ms']:.3g} ms (PyTorch {row['pytorch_ms']:.3g})")
