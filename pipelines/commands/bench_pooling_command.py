"""`tokenpool bench pooling`: how much faster pooled models really are."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from pipelines.commands.benchmarks_room import benchmarks_room
from pipelines.commands.shared_options import AsJson
from pipelines.console import table
from pipelines.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

_ONNX = "onnx"


def pooling(
    model: Annotated[str, typer.Option(help="A timm name; weights are random.")] = (
        "deit_small_patch16_224"
    ),
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side in pixels, where not the model's own.")
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            min=32,
            help="In place of --model: the demo's, 32 px, 64 patches, 6 blocks, heads of 32.",
        ),
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            help="fp32-eager, bf16-eager, fp32-compiled, or onnx for ONNX Runtime on the CPU, "
            "which takes as many threads as there are cores; default the first three."
        ),
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="May be given several times; default 32.")
    ] = None,
    only: Annotated[
        str, typer.Option(help="Variants whose name holds one of these, a|b, and the dense model.")
    ] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Timed batches of each variant.")] = 7,
    rate: Annotated[float, typer.Option(help="Keep rate of the schedule the rows share.")] = 0.93,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; on a busy machine use 1.")
    ] = None,
    details: Annotated[
        bool, typer.Option(help="Measure the time of pooling alone and the peak memory too.")
    ] = True,
    cpu_time: Annotated[
        bool,
        typer.Option(
            "--cpu-time", help="Count processor time, for a busy machine; with --threads 1."
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Append the rows to this JSON-lines file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Images/s, realised speed-up ÷ MAC ratio, time of pooling alone, peak memory, side by side."""
    import torch

    import tokenpool as tp

    with benchmarks_room():
        from benchmarks.pooling import pooled_speed

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("there is no CUDA device: use --device cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    if width is not None and width % 32:
        raise UserError(f"--width is {width} but must be a multiple of 32, the width of a head")
    demo = None if width is None else tp.build_vit(32, 4, width, 6, width // 32, 10)
    name = model if width is None else f"demo, width {width}"
    batches = tuple(batch_size or (32,))
    console = Console(stderr=True)
    sized: dict[str, Any] = {}
    if image_size is not None:
        sized["model_options"] = {"img_size": image_size}
    rows: list[dict[str, Any]] = []
    try:
        with console.status("starting") as status:
            for row in pooled_speed.run(
                name,
                modes=tuple(mode) if mode else pooled_speed.MODES,
                only=only,
                batches=batches,
                rounds=rounds,
                rate=rate,
                device=device,
                model=demo,
                **sized,
                runners={_ONNX: _in_onnx_runtime},
                details=details,
                cpu_time=cpu_time,
                progress=status.update,
            ):
                rows.append(row)
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error).splitlines()[0]) from None
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    headings = ["mode", "batch", "variant", "img/s", "speed-up", "MACs", "realised"]
    headings += ["pooling ms", "peak MiB"] if details else []
    shown = table(f"{name}, {rows[0]['hardware']}", headings, left=("mode", "variant"))
    for row in rows:
        alone = row.get("pooling_ms")
        more = (
            ["" if alone is None else f"{alone:.1f}", f"{row['peak_mib']:.0f}"] if details else []
        )
        shown.add_row(
            row["mode"],
            str(row["batch"]),
            row["variant"],
            f"{row['images_per_second']:.1f}",
            f"{row['speedup']:.2f}",
            f"{row['mac_ratio']:.2f}",
            f"{row['realised']:.2f}",
            *more,
        )
    Console().print(shown)


def _in_onnx_runtime(model: nn.Module) -> Callable[[Tensor], object]:
    """The model exported and opened again."""
    from pipelines.export.export_formats import open_format, write_format

    with tempfile.TemporaryDirectory() as folder:
        write_format(model, _ONNX, Path(folder), {})
        return open_format(_ONNX, Path(folder))
