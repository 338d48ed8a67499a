"""The prepared pictures and the models with their heads, each made once and kept in the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

import tokenpool as tp
from benchmarks.real.cliparts import make_folder
from benchmarks.real.dinov2 import backbone, dense_features, fit_head, state_from_onnx
from benchmarks.real.downloads import fetch_pictures, fetch_weights
from pipelines.data.manifest import load_manifest
from pipelines.data.preprocessing import Preprocessing, preprocessing_of
from pipelines.data.split_batches import split_batches
from pipelines.errors import UserError

__all__ = ["SIZES", "model_for", "open_split", "prepared_set"]

SIZES = (224, 112)
# So that squeeze has 256 pictures to look at; heads are fitted to the rest of train.
_MINIVAL = 0.16
_BATCH = 32

Say = Callable[[str], None]


def prepared_set(cache: Path, data: Path | None, say: Say) -> Path:
    """A folder that `tokenpool prepare` made: of the clip arts, or of a folder of one's own.

    Args:
        cache: where it is made.
        data: a prepared folder, which is taken as it is; an image folder or Parquet shards, which
            are prepared; None for the clip arts, which are fetched.
        say: told what is begun.

    Raises:
        UserError: `tokenpool prepare` refuses it.
    """
    if data is not None and (data / "manifest.json").is_file():
        return data.resolve()
    if data is None:
        source, out = cache / "cliparts", cache / "sets" / "cliparts"
        if not source.is_dir():
            say("shrinking the clip arts")
            counts = make_folder(fetch_pictures(cache), source)
            say(", ".join(f"{count} {what}" for what, count in counts.items()))
    else:
        source = data.resolve()
        out = cache / "sets" / source.name
    if not out.is_dir():
        words = ["prepare", str(source), str(out), "--minival", str(_MINIVAL), "--skip-bad"]
        words += ["--quality", "95", "--resolution", "256", "--resolution-side", "shortest"]
        say("tokenpool " + " ".join(words))
        command = [sys.executable, "-m", "pipelines.cli", *words]
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"tokenpool prepare refuses {source}: see above", exit_code=1)
    return out


def model_for(cache: Path, prepared: Path, image_size: int, say: Say) -> Path:
    """A saved DINOv2 ViT-S/14 whose linear head was fitted to the training pictures.

    Raises:
        UserError: there is no such size, or the weights cannot be had.
    """
    if image_size % 14:
        raise UserError(f"--image-size {image_size} is no multiple of the patch of 14 pixels")
    path = cache / "models" / f"{prepared.name}-{image_size}"
    if path.is_dir():
        return path
    model = backbone(state_from_onnx(fetch_weights(cache)), image_size)
    manifest = load_manifest(prepared)
    wanted = preprocessing_of(model, manifest)
    say(f"features of {manifest.splits['train'].samples} training pictures; {wanted}")
    features, labels = dense_features(model, open_split(prepared, "train", wanted))
    fit_head(model, features, labels)
    if model.num_classes != len(manifest.classes):
        raise UserError(f"{prepared} has classes without a training picture", exit_code=1)
    model.pretrained_cfg["label_names"] = list(manifest.classes)
    return tp.save(model, path)


def open_split(
    prepared: Path, split: str, wanted: Preprocessing
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures as a model wants them, and labels, in batches, in stored order."""
    threads = len(os.sched_getaffinity(0))
    for images, labels in split_batches(prepared, split, wanted, _BATCH, num_threads=threads):
        yield wanted(images), labels
