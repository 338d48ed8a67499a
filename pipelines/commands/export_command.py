"""`tokenpool export NAME TRIAL` or `tokenpool export FOLDER`: take a model away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.shared_options import AsJson, MovedData, NameOrFolder, Storage
from pipelines.errors import UserError
from pipelines.results.explain import exportable
from pipelines.results.front import build_front
from pipelines.search.state import load_state
from pipelines.storage.search_files import Search


def export(
    name: NameOrFolder,
    model: Annotated[
        str | None, typer.Argument(help="Of a search: a trial's id, or dense-WIDTH; see `front`.")
    ] = None,
    format_name: Annotated[
        str, typer.Option("--format", help="timm, onnx or torch-export.")
    ] = "timm",
    precision: Annotated[
        str, typer.Option(help="Of ONNX: fp32, fp16 or int8, measured beside fp32.")
    ] = "fp32",
    opset: Annotated[int, typer.Option(help="Of ONNX: version of its operators.")] = 18,
    ir_version: Annotated[
        int, typer.Option(help="Of ONNX: version of its files; 9 is for ONNX Runtime 1.17 and up.")
    ] = 9,
    out: Annotated[
        Path | None, typer.Option(help="A new folder; default exports/NAME-TRIAL-FORMAT.")
    ] = None,
    data: MovedData = None,
    as_json: AsJson = False,
    storage: Storage = "runs",
) -> None:
    """Export a model, checked against PyTorch on real images, with a model card."""
    folder = Path(name) if (Path(name) / "model.json").is_file() else None
    kind = format_name if precision == "fp32" else f"{format_name}-{precision}"
    if folder is None:
        state = load_state(Search.open(storage, name))
        if model is None:
            raise UserError(f"which model of search {name}? tokenpool front {name} lists them")
        exportable(build_front(state), model)
    elif model is not None:
        raise UserError(f"{name} is one saved model: {model} is of no search")
    elif data is None:
        raise UserError("say with --data which prepared data to check the export with")
    # Imported only now: torch takes seconds.
    from pipelines.export.export_model import OnnxForm, export_folder, export_point

    form = OnnxForm(precision, opset, ir_version)
    called = f"{name}-{model}" if folder is None else folder.resolve().name
    target = out or Path("exports") / f"{called}-{kind}"
    if folder is None:
        facts = export_point(state, str(model), format_name, target, data=data, form=form)
    else:
        facts = export_folder(folder, format_name, target, data=Path(str(data)), form=form)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    check = facts["check"]
    number, within = check["images"], check["within_tolerance"]
    largest = check["largest_logit_difference"]
    typer.echo(
        f"wrote {target}: {'fp32 ' if precision != 'fp32' else ''}logits within "
        + (
            f"{largest:.1e} of PyTorch's on {number} images"
            if within == number
            else f"1e-4 of PyTorch's on {within} of {number} images; up to {largest:.1e} on the "
            "others, as PyTorch's own where rounding decides between two tokens"
        )
    )
    if "reduced" in facts:
        reduced = facts["reduced"]
        typer.echo(
            "  top-1 "
            + ", ".join(f"{n} {100 * top1:.2f} %" for n, top1 in reduced["top1"].items())
            + f" on {reduced['images']} images; same class {100 * reduced['same_class']:.2f} %"
        )
    for row in facts["speed"]["batches"]:
        beside = f"ONNX fp32 {row['fp32_ms']:.3g}, " if "fp32_ms" in row else ""
        typer.echo(
            f"  batch {row['batch']}: {row['ms']:.3g} ms ({beside}PyTorch {row['pytorch_ms']:.3g})"
        )
