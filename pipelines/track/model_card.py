"""The README that travels with an exported model."""

from __future__ import annotations

from typing import Any

from cluster.security.secrecy import redactor
from pipelines.data.manifest import Manifest
from pipelines.track.front import Point
from pipelines.track.points import standard_error
from pipelines.track.table import compact_schedule, described, with_spread

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
    before = facts["preprocessing"]
    check, speed = facts["check"], facts["speed"]
    rows = [
        f"| {row['batch']} | {row['ms']:.3g} | {row['pytorch_ms']:.3g} |"
        for row in speed["batches"]
    ]
    usage = _USE[facts["format"]].format(folder=".", size=before["image_size"])
    kind = (
        "without pooling" if point.kind == "dense" else f"with token pooling ({described(point)})"
    )
    # These weights are those of one training.
    own = point.only(next(t for t in point.trainings if t.finished))
    seeds = [
        f"| over {point.num_seeds} seeds | minival "
        f"{with_spread(point.top1_minival, point.minival_spread)} %, validation "
        f"{with_spread(point.top1_val, point.val_spread)} %, mean±standard deviation |"
    ]
    return "\n".join(
        [
            f"# {facts['search']} / {point.point_id}",
            "",
            f"A vision transformer of width {point.width} with {point.num_heads} heads and "
            f"{len(point.schedule)} blocks, {kind}, found by tokenpool "
            "(Token Pooling in Vision Transformers, arXiv 2110.03860).",
            "",
            "| | |",
            "|---|---|",
            f"| patch tokens kept after each block | {compact_schedule(point.schedule)} |",
            f"| cost | {point.gmacs:.4g} GMACs per image, clustering counted; "
            f"{100 * point.dense_share:.0f} % of the widest dense model |",
            f"| top-1 on minival | {_accuracy(own.top1_minival, manifest, 'minival')} |",
            f"| top-1 on validation | {_accuracy(own.top1_val, manifest, 'val')} |",
            *(seeds if point.minival_spread is not None else []),
            f"| data | {redactor().text(manifest.source)}, {len(manifest.classes)} classes |",
            f"| config | {facts['config_hash']} |",
            "",
            "Errors are one binomial standard error over the images. Minival decided which model "
            "was kept, so its figure flatters; validation was computed once.",
            "",
            "## Use",
            "",
            usage,
            "",
            f"Images: RGB, {before['image_size']} px, in 0..1, minus mean "
            f"{_numbers(before['mean'])}, divided by std {_numbers(before['std'])}.",
            "Classes, in the order of the logits: see `classes` in `export.json`.",
            "",
            "## Checked and measured at export",
            "",
            f"On {check['images']} validation images the logits differ from PyTorch's by at most "
            f"{check['largest_logit_difference']:.1e}; same top-1: "
            f"{'yes' if check['same_top1'] else 'no'}.",
            "",
            f"Median milliseconds per batch on {speed['hardware']}, {speed['threads']} threads, "
            "fp32:",
            "",
            "| batch | this export | PyTorch eager |",
            "|---|---|---|",
            *rows,
            "",
            "## Licence",
            "",
            "The software that made it is under Apache-2.0. The weights were learned from the data "
            "named above, whose licence and terms apply to them.",
            "",
        ]
    )


def _accuracy(top1: float | None, manifest: Manifest, split: str) -> str:
    if top1 is None:
        return "not measured"
    images = manifest.splits[split].samples
    return f"{100 * top1:.2f} ± {100 * standard_error(top1, images):.2f} % of {images} images"


def _numbers(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"
