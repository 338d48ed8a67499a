"""The README that travels with an exported model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pipelines.data.manifest import Manifest
from pipelines.results.front import Point
from pipelines.results.points import standard_error
from pipelines.results.table import compact_schedule, described, with_spread
from pipelines.secrecy.guard import redactor

_USE = {
    "timm": """```python
import timm, tokenpool as tp
pooled = tp.load("{folder}")                            # as described above
dense = timm.create_model("local-dir:{folder}", pretrained=True)   # same weights, no pooling
```""",
    "onnx": """```python
import onnxruntime
session = onnxruntime.InferenceSession("{folder}/model.onnx")
(logits,) = session.run(None, {{"images": images}})       # float32 [batch, 3, {size}, {size}]
```""",
    "torch-export": """```python
import torch                                            # nothing else is needed
model = torch.export.load("{folder}/model.pt2").module()
logits = model(images)                                  # float32 [batch, 3, {size}, {size}]
```""",
}


def model_card(point: Point, facts: dict[str, Any], manifest: Manifest) -> str:
    """The card as Markdown: what it is, how good with which error, how fast, how to run it."""
    kind = (
        "without pooling" if point.kind == "dense" else f"with token pooling ({described(point)})"
    )
    # These weights are those of one training.
    own = point.only(next(t for t in point.trainings if t.is_finished))
    seeds = [
        f"| over {point.num_seeds} seeds | minival "
        f"{with_spread(point.top1_minival, point.minival_spread)} %, validation "
        f"{with_spread(point.top1_val, point.val_spread)} %, mean±standard deviation |"
    ]
    rows = [
        f"| top-1 on minival | {_accuracy(own.top1_minival, manifest, 'minival')} |",
        f"| top-1 on validation | {_accuracy(own.top1_val, manifest, 'val')} |",
        *(seeds if point.minival_spread is not None else []),
        f"| config | {facts['config_hash']} |",
    ]
    return _card(
        f"{facts['search']} / {point.point_id}",
        f"{kind}, found by tokenpool",
        point,
        rows,
        "Errors are one binomial standard error over the images. Minival decided which model was "
        "kept, so its figure flatters; validation was computed once.",
        facts,
        manifest,
    )


def folder_card(facts: dict[str, Any], manifest: Manifest) -> str:
    """The card of a saved or squeezed model that no search knows."""
    model = SimpleNamespace(**facts["model"])
    dense = len(set(model.schedule)) == 1 and model.dense_share == 1
    kind = "without pooling" if dense else f"with token pooling (`{model.method}`)"
    note = "Its accuracy is that of its source: see what `tokenpool squeeze` said."
    return _card(model.name, f"{kind}, saved by tokenpool", model, [], note, facts, manifest)


def _card(
    title: str,
    kind: str,
    model: Any,
    rows: list[str],
    note: str,
    facts: dict[str, Any],
    manifest: Manifest,
) -> str:
    """What all cards say."""
    before, widest = facts["preprocessing"], "widest " if "search" in facts else ""
    usage = _USE[facts["format"]].format(folder=".", size=before["image_size"])
    return "\n".join(
        [
            f"# {title}",
            "",
            f"A vision transformer of width {model.width} with {model.num_heads} heads and "
            f"{len(model.schedule)} blocks, {kind} "
            "(Token Pooling in Vision Transformers, arXiv 2110.03860).",
            "",
            "| | |",
            "|---|---|",
            f"| patch tokens kept after each block | {compact_schedule(tuple(model.schedule))} |",
            f"| cost | {model.gmacs:.4g} GMACs per image, clustering counted; "
            f"{100 * model.dense_share:.0f} % of the {widest}dense model |",
            f"| data | {redactor().text(manifest.source)}, {len(manifest.classes)} classes |",
            *rows,
            "",
            note,
            "",
            "## Use",
            "",
            usage,
            "",
            f"Images: RGB, {before['image_size']} px, in 0..1, minus mean "
            f"{_numbers(before['mean'])}, divided by std {_numbers(before['std'])}.",
            "Classes, in the order of the logits: see `classes` in `export.json`.",
            "",
            *_measured(facts),
            "## Licence",
            "",
            "The software that made it is under Apache-2.0. The weights were learned from the data "
            "named above, whose licence and terms apply to them.",
            "",
        ]
    )


def _measured(facts: dict[str, Any]) -> list[str]:
    """What was checked and measured at export."""
    check, speed, precision = facts["check"], facts["speed"], facts.get("precision", "fp32")
    lines = [
        "## Checked and measured at export",
        "",
        f"The logits{'' if precision == 'fp32' else ' of the float32 form'} are within 1e-4 of "
        f"PyTorch's on {check['within_tolerance']} of {check['images']} validation images"
        + (
            f", on {check['ties']} as PyTorch's where rounding decides between two tokens"
            if check["ties"]
            else ""
        )
        + f", and differ by at most {check['largest_logit_difference']:.1e}; same top-1: "
        f"{'yes' if check['same_top1'] else 'no'}.",
        "",
    ]
    if precision != "fp32":
        reduced = facts["reduced"]
        lines += [
            f"Top-1 on {reduced['images']} validation images: "
            + ", ".join(f"{name} {100 * top1:.2f} %" for name, top1 in reduced["top1"].items())
            + f"; the same class for {100 * reduced['same_class']:.2f} % of them.",
            "",
        ]
    names = {
        "ms": f"this export ({precision})",
        "fp32_ms": "ONNX fp32",
        "pytorch_ms": "PyTorch eager, fp32",
    }
    columns = [name for name in names if name in speed["batches"][0]] if speed["batches"] else []
    return [
        *lines,
        f"Median milliseconds per batch on {speed['hardware']}, {speed['threads']} threads:",
        "",
        "| batch | " + " | ".join(names[name] for name in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        *(
            f"| {row['batch']} | " + " | ".join(f"{row[name]:.3g}" for name in columns) + " |"
            for row in speed["batches"]
        ),
        "",
    ]


def _accuracy(top1: float | None, manifest: Manifest, split: str) -> str:
    if top1 is None:
        return "not measured"
    images = manifest.splits[split].samples
    return f"{100 * top1:.2f} ± {100 * standard_error(top1, images):.2f} % of {images} images"


def _numbers(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"
