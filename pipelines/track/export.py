"""Taking a model away: written in a format, proved on real images, timed, described."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tokenpool as tp
from pipelines.data.loader import make_loader
from pipelines.data.manifest import load_manifest
from pipelines.data.preprocessing import Preprocessing, preprocessing_of
from pipelines.errors import UserError
from pipelines.search.state import SearchState
from pipelines.storage.copies import local_path
from pipelines.track.explain import exportable
from pipelines.track.export_formats import FORMATS, Run, open_format, write_format
from pipelines.track.front import Point, build_front
from pipelines.track.model_card import model_card
from pipelines.track.where import find_data

MAX_DIFFERENCE = 1e-4
_IMAGES, _BATCHES, _SECONDS_PER_TIMING = 64, (1, 32), 1.5


@dataclass(frozen=True)
class Check:
    """How an exported model compares with the PyTorch model.

    Attributes:
        images: Real validation images it was run on, in one batch and some of them one by one.
        largest_difference: Of any logit.
        same_top1: Whether every image gets the same class, or one that the PyTorch model holds for
            as likely within the tolerance.
    """

    images: int
    largest_difference: float
    same_top1: bool

    @property
    def passed(self) -> bool:
        """Whether it is the same model."""
        return self.same_top1 and self.largest_difference <= MAX_DIFFERENCE


def export_point(
    state: SearchState,
    point_id: str,
    format_name: str,
    out: Path,
    *,
    data: Path | None = None,
) -> dict[str, Any]:
    """Exports a model of a search; `out` appears whole and checked, or not at all.

    Args:
        state: The search.
        point_id: A trial's id, or `dense-WIDTH`.
        format_name: One of `FORMATS`.
        out: A folder that does not exist yet.
        data: The prepared data, where it is no longer where the search read it.

    Returns:
        What was checked and measured, as in `export.json`.

    Raises:
        UserError: An unknown model or format, a model without a checkpoint, a target that exists
            or cannot be written, no data to check with, or an export that is another model.
    """
    if format_name not in FORMATS:
        raise UserError(f"--format {format_name} is unknown: use one of {', '.join(FORMATS)}")
    point = exportable(build_front(state), point_id)
    if out.exists():
        raise UserError(f"{out} exists: remove it or choose another with --out")
    model = load_checkpoint(point)
    source = find_data(state, data)
    manifest = load_manifest(source)
    view = preprocessing_of(model, manifest)
    preprocessing = {"image_size": view.size[0], "mean": list(view.mean), "std": list(view.std)}
    if view.cut is not None:
        preprocessing |= {
            "crop_pct": view.cut.crop_pct,
            "crop_mode": view.cut.crop_mode,
            "interpolation": view.cut.interpolation,
        }
    images = validation_images(source, view, state.config["data"].get("loader", "auto"))
    aside = _aside(out)
    try:
        write_format(model, format_name, aside, preprocessing)
        exported = open_format(format_name, aside)
        check = compare(model, exported, images)
        if not check.passed:
            raise UserError(
                f"the {format_name} export of {point_id} is not the same model: logits differ by "
                f"{check.largest_difference:.2g}, same top-1: {check.same_top1}; nothing written",
                exit_code=1,
            )
        facts = {
            "search": state.name,
            # Where it lay on this machine is nobody else's business.
            "model": {k: v for k, v in point.as_dict().items() if k != "checkpoint"},
            "format": format_name,
            "config_hash": state.config_hash,
            "preprocessing": preprocessing,
            "classes": manifest.classes,
            "check": {
                "images": check.images,
                "largest_logit_difference": check.largest_difference,
                "same_top1": check.same_top1,
            },
            "speed": measure(model, exported, images),
        }
        (aside / "export.json").write_text(json.dumps(facts, indent=2) + "\n")
        (aside / "README.md").write_text(model_card(point, facts, manifest), encoding="utf-8")
        for path in aside.iterdir():
            path.chmod(0o644)
        aside.chmod(0o755)
        aside.rename(out)
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror}; choose another with --out", exit_code=1
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return facts


def load_checkpoint(point: Point) -> nn.Module:
    """The PyTorch model of a point that has a checkpoint, on the CPU, in evaluation mode.

    Raises:
        UserError: The checkpoint is gone or damaged.
    """
    try:
        return tp.load(local_path(str(point.checkpoint))).eval()
    except ValueError as error:
        raise UserError(f"the checkpoint of {point.point_id}: {error}", exit_code=1) from None


def validation_images(source: Path, view: Preprocessing, implementation: Any = "auto") -> Tensor:
    """The first validation images as the model sees them, `[B, channels, H, W]`."""
    loader = make_loader(
        source,
        "val",
        batch_size=_IMAGES,
        train=False,
        image_size=view.size[0],
        implementation=implementation,
        geometry="auto" if view.cut is None else view.cut,
    )
    try:
        images, _ = next(iter(loader))
        return view(images).contiguous()
    finally:
        loader.close()


def compare(model: nn.Module, exported: Run, images: Tensor) -> Check:
    """Runs both on the same images, in one batch and a few of them alone."""
    with torch.no_grad():
        expected = model(images)
        got = exported(images)
        alone = [exported(image.contiguous()) for image in images[:4].split(1)]
    got = torch.cat([got, *alone])
    expected = torch.cat([expected, expected[: len(alone)]])
    # Which of two equal logits is the larger one is the rounding's business.
    lost = expected.amax(1) - expected.gather(1, got.argmax(1, keepdim=True)).squeeze(1)
    return Check(
        images=len(images),
        largest_difference=float((got - expected).abs().max()),
        same_top1=bool((lost <= MAX_DIFFERENCE).all()),
    )


def measure(model: nn.Module, exported: Run, images: Tensor) -> dict[str, Any]:
    """Milliseconds per batch, medians, of the export and of PyTorch in turn, on this machine."""
    rows = []
    for batch in _BATCHES:
        part = images[:batch].contiguous()
        if len(part) < batch:
            continue
        with torch.no_grad():
            mine, theirs = _median_ms(exported, part), _median_ms(model, part)
        rows.append({"batch": batch, "ms": mine, "pytorch_ms": theirs})
    return {
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "batches": rows,
    }


def _median_ms(run: Run, images: Tensor) -> float:
    run(images)
    times: list[float] = []
    deadline = time.perf_counter() + _SECONDS_PER_TIMING
    while len(times) < 5 or (time.perf_counter() < deadline and len(times) < 200):
        start = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - start)
    return round(1000 * sorted(times)[len(times) // 2], 4)


def _aside(out: Path) -> Path:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror}; choose another with --out", exit_code=1
        ) from None
