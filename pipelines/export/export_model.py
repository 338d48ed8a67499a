"""Taking a model away: written in a format, proved on real images, timed, described."""

from __future__ import annotations

import itertools
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tokenpool as tp
from pipelines.data.manifest import Manifest, load_manifest
from pipelines.data.preprocessing import Preprocessing, preprocessing_of
from pipelines.data.split_batches import split_batches
from pipelines.errors import UserError
from pipelines.export.export_formats import (
    FORMATS,
    OnnxForm,
    Run,
    open_format,
    reduce_onnx,
    write_format,
)
from pipelines.export.model_card import folder_card, model_card
from pipelines.results.explain import exportable
from pipelines.results.find_data import find_data
from pipelines.results.front import build_front
from pipelines.results.load_checkpoint import load_checkpoint
from pipelines.search.state import SearchState
from pipelines.search.timing import median_ms
from pipelines.storage.durable import write_atomic
from tokenpool.patches import patches_of

MAX_DIFFERENCE = 1e-4
# What rounding does to a picture, in proportion, and how often it is drawn; see `Check.ties`.
_ROUNDING, _DRAWS, _AT_ONCE = 3e-7, 96, 16
_IMAGES, _BATCHES, _SECONDS_PER_TIMING = 64, (1, 32), 1.5
# Batches of images that the accuracy of a reduced precision is measured on.
_REDUCED = 16


@dataclass(frozen=True)
class Check:
    """How an exported model compares with the PyTorch model.

    Attributes:
        images: Real validation images it was run on, in one batch and some of them one by one.
        within: How many have all logits within the tolerance.
        ties: How many others have those that the PyTorch model gives for the same picture disturbed
            by no more than rounding does: two tokens differ by less than that (on flat
            backgrounds), and another one of them is kept.
        largest_difference: Of any logit.
        same_top1: Whether every other image gets the same class, or one that the PyTorch model
            holds for as likely within the tolerance; a tie gets a class that PyTorch gives as well.
    """

    images: int
    within: int
    ties: int
    largest_difference: float
    same_top1: bool

    @property
    def passed(self) -> bool:
        """Whether it is the same model."""
        return self.same_top1 and self.within + self.ties == self.images


def export_point(
    state: SearchState,
    point_id: str,
    format_name: str,
    out: Path,
    *,
    data: Path | None = None,
    form: OnnxForm | None = None,
) -> dict[str, Any]:
    """Exports a model of a search; `out` appears whole and checked, or not at all.

    Args:
        state: The search.
        point_id: A trial's id, or `dense-WIDTH`.
        format_name: One of `FORMATS`.
        out: A folder that does not exist yet.
        data: The prepared data, where it is no longer where the search read it.
        form: Of an ONNX file.

    Returns:
        What was checked and measured, as in `export.json`.

    Raises:
        UserError: An unknown model or format, a model without a checkpoint, a target that exists
            or cannot be written, no data to check with, or an export that is another model.
    """
    _check_asked(format_name, out, form)
    point = exportable(build_front(state), point_id)
    model = load_checkpoint(point)
    source = find_data(state, data)
    about = {
        "search": state.name,
        # Where it lay on this machine is nobody else's business.
        "model": {k: v for k, v in point.as_dict().items() if k != "checkpoint"},
        "config_hash": state.config_hash,
    }
    loader = state.config.data.loader
    return _export(
        model, format_name, out, source, about, form, loader,
        lambda facts, manifest: model_card(point, facts, manifest),
    )  # fmt: skip


def export_folder(
    folder: Path, format_name: str, out: Path, *, data: Path, form: OnnxForm | None = None
) -> dict[str, Any]:
    """Exports a model that `tp.save` or `tokenpool squeeze` wrote, as `export_point` does.

    Args:
        folder: The saved model.
        format_name: One of `FORMATS`.
        out: A folder that does not exist yet.
        data: Prepared data of its classes, to check with.
        form: Of an ONNX file.

    Raises:
        UserError: As `export_point`.
    """
    _check_asked(format_name, out, form)
    try:
        model = tp.load(folder).eval()
    except ValueError as error:
        raise UserError(str(error)) from None
    vit: Any = model
    dense = tp.Schedule.dense(len(vit.blocks), patches_of(model).number)
    cost, pooling = tp.macs(model), tp.pooling_of(model)
    about = {
        "model": {
            "name": folder.resolve().name,
            "width": vit.embed_dim,
            "num_heads": vit.blocks[0].attn.num_heads,
            "schedule": list(pooling.realised if pooling else dense),
            "method": pooling.method_text if pooling else "dense",
            "gmacs": cost.gmacs,
            "dense_share": cost.total / tp.macs(model, dense).total,
        }
    }
    return _export(model, format_name, out, data, about, form, "auto", folder_card)


def _check_asked(format_name: str, out: Path, form: OnnxForm | None) -> None:
    if format_name not in FORMATS:
        raise UserError(f"--format {format_name} is unknown: use one of {', '.join(FORMATS)}")
    if form is not None and form != OnnxForm() and format_name != "onnx":
        raise UserError(
            f"--precision, --opset and --ir-version are of ONNX files, not of {format_name} exports"
        )
    if out.exists():
        raise UserError(f"{out} exists: remove it or choose another with --out")


def _export(
    model: nn.Module,
    format_name: str,
    out: Path,
    source: Path,
    about: dict[str, Any],
    form: OnnxForm | None,
    loader: Any,
    card: Callable[[dict[str, Any], Manifest], str],
) -> dict[str, Any]:
    """Writes the model beside `out`, checks and measures it, and puts it into place."""
    form = form or OnnxForm()
    manifest = load_manifest(source)
    view = preprocessing_of(model, manifest)
    preprocessing = {"image_size": view.size[0], "mean": list(view.mean), "std": list(view.std)}
    if view.cut is not None:
        preprocessing |= {
            "crop_pct": view.cut.crop_pct,
            "crop_mode": view.cut.crop_mode,
            "interpolation": view.cut.interpolation,
        }
    batches = validation_batches(source, view, loader, 1 if form.precision == "fp32" else _REDUCED)
    images = batches[0][0]
    facts: dict[str, Any] = {}

    def fill(aside: Path) -> None:
        nonlocal facts
        aside.mkdir()
        write_format(model, format_name, aside, preprocessing, replace(form, precision="fp32"))
        exported = open_format(format_name, aside)
        check = compare(model, exported, images)
        if not check.passed:
            raise UserError(
                f"the {format_name} export of {_named(about)} is not the same model: logits differ "
                f"by {check.largest_difference:.2g}, {check.images - check.within - check.ties} of "
                f"{check.images} images by more than rounding explains, same top-1: "
                f"{check.same_top1}; nothing written",
                exit_code=1,
            )
        facts = about | {
            "format": format_name,
            "preprocessing": preprocessing,
            "classes": manifest.classes,
            "check": {
                "images": check.images,
                "within_tolerance": check.within,
                "ties": check.ties,
                "largest_logit_difference": check.largest_difference,
                "same_top1": check.same_top1,
            },
        }
        if format_name == "onnx":
            facts["onnx"] = {"opset": form.opset, "ir_version": form.ir_version}
        if form.precision == "fp32":
            facts["speed"] = measure({"ms": exported, "pytorch_ms": model}, images)
        else:
            reduce_onnx(aside, form.precision)
            reduced = open_format(format_name, aside)
            facts["precision"] = form.precision
            facts["reduced"] = _accuracy({"fp32": exported, form.precision: reduced}, batches)
            runs: dict[str, Run] = {"ms": reduced, "fp32_ms": exported, "pytorch_ms": model}
            facts["speed"] = measure(runs, images)
        (aside / "export.json").write_text(json.dumps(facts, indent=2) + "\n")
        (aside / "README.md").write_text(card(facts, manifest), encoding="utf-8")
        for path in aside.iterdir():
            path.chmod(0o644)

    write_atomic(out, fill)
    return facts


def _named(about: dict[str, Any]) -> str:
    return str(about["model"].get("point_id") or about["model"].get("name"))


def _accuracy(runs: dict[str, Run], batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Top-1 of each on the same validation images, and how often the last agrees with the first.

    Raises:
        UserError: Logits are not finite, as where values leave the range of fp16.
    """
    right, agree, count = dict.fromkeys(runs, 0), 0, 0
    for images, labels in batches:
        found = {name: run(images) for name, run in runs.items()}
        for name, logits in found.items():
            if not logits.isfinite().all():
                raise UserError(
                    f"--precision {name} gives logits that are not finite for this model: use "
                    "another; nothing written",
                    exit_code=1,
                )
            right[name] += int((logits.argmax(1) == labels).sum())
        first, *_, last = found.values()
        agree += int((first.argmax(1) == last.argmax(1)).sum())
        count += len(images)
    top1 = {name: number / count for name, number in right.items()}
    return {"images": count, "top1": top1, "same_class": agree / count}


def validation_batches(
    source: Path, view: Preprocessing, implementation: Any, most: int
) -> list[tuple[Tensor, Tensor]]:
    """The first `most` batches of validation images as the model sees them, and labels."""
    batches = split_batches(source, "val", view, _IMAGES, implementation=implementation)
    return [(view(x).contiguous(), y) for x, y in itertools.islice(batches, most)]


def compare(model: nn.Module, exported: Run, images: Tensor) -> Check:
    """Runs both on the same images: in one batch, in pairs, and alone."""
    with torch.no_grad():
        expected = model(images)
        got = exported(images)
        parts = [exported(part.contiguous()) for n in (1, 2) for part in images[:4].split(n)]
    got = torch.cat([got, *parts])
    expected = torch.cat([expected, expected[:4], expected[:4]])
    far = (got - expected).abs().amax(1) > MAX_DIFFERENCE
    # In whichever batch: an image counts once, with all that the export gave for it.
    count = len(images)
    of_image = torch.cat([torch.arange(count), torch.arange(len(got) - count) % min(4, count)])
    beyond = sorted(set(of_image[far].tolist()))
    ties = [i for i in beyond if _is_tie(model, images[i], got[far & (of_image == i)])]
    # Which of two equal logits is the larger one is the rounding's business.
    lost = expected.amax(1) - expected.gather(1, got.argmax(1, keepdim=True)).squeeze(1)
    return Check(
        images=count,
        within=count - len(beyond),
        ties=len(ties),
        largest_difference=float((got - expected).abs().max()),
        same_top1=bool((lost <= MAX_DIFFERENCE)[~torch.isin(of_image, torch.tensor(ties))].all()),
    )


def _is_tie(model: nn.Module, image: Tensor, got: Tensor) -> bool:
    """Whether the model gives all of these logits for the picture, disturbed by rounding alone."""
    random = torch.Generator().manual_seed(0)
    open_still = torch.ones(len(got), dtype=torch.bool)
    for _ in range(0, _DRAWS, _AT_ONCE):
        noise = torch.randn(_AT_ONCE, *image.shape, generator=random)
        with torch.no_grad():
            drawn = model(image * (1 + _ROUNDING * noise))
        nearest = (drawn.unsqueeze(0) - got.unsqueeze(1)).abs().amax(2).amin(1)
        open_still &= nearest > MAX_DIFFERENCE
        if not open_still.any():
            return True
    return False


def measure(runs: dict[str, Run], images: Tensor) -> dict[str, Any]:
    """Milliseconds per batch, medians, of each in turn, on this machine."""
    rows = []
    for batch in _BATCHES:
        part = images[:batch].contiguous()
        if len(part) < batch:
            continue
        with torch.no_grad():
            times = {
                name: round(median_ms(partial(run, part), "cpu", seconds=_SECONDS_PER_TIMING), 4)
                for name, run in runs.items()
            }
        rows.append({"batch": batch, **times})
    return {
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "batches": rows,
    }
