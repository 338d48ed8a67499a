"""Saved models: a directory with `model.safetensors` and `model.json`, never pickle.

The JSON holds format version, architecture, schedule, method, options, what the model's images
look like and its classes are called (`model.pretrained_cfg`), and the sha256 of the weights. The
directory is written aside and renamed into place, so that it is there whole or not at
all; `load` refuses weights that are not those the JSON names.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tokenpool.models.architecture import build, describe
from tokenpool.models.preprocessing import read_config, written_config
from tokenpool.pooling import pool, pooling_of

__all__ = ["load", "read_header", "save"]

_WEIGHTS, _HEADER, _VERSION = "model.safetensors", "model.json", 1
# What building a model raises of a description that is of no model.
_UNFIT = (
    *(LookupError, TypeError, AttributeError, ArithmeticError),
    *(ValueError, RuntimeError, AssertionError),
)


def save(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a timm ViT, pooled or not, to the directory `path`; an earlier save is replaced.

    What `model.pretrained_cfg` says of images (mean, std, crop, interpolation) and classes
    (`label_names`) is kept. A generator among the options is not stored: a loaded model draws from
    the global one.

    Raises:
        ValueError: for a model that cannot be rebuilt from its description, or a `path` at which
            there is something other than a saved model.
    """
    target = Path(path)
    if target.exists() and not (target / _HEADER).is_file():
        raise ValueError(f"{target} exists and is not a saved model: choose another path")
    header: dict[str, Any] = {"format": "tokenpool", "version": _VERSION}
    header["architecture"] = describe(model)
    header |= written_config(model)
    pooling = pooling_of(model)
    if pooling is not None:
        header["pooling"] = {
            "schedule": list(pooling.schedule),
            "method": pooling.method,
            "options": pooling.options.as_dict(),
        }
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(tensors, aside / _WEIGHTS)
        header["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
        header["sha256"] = _sha256(aside / _WEIGHTS)
        (aside / _HEADER).write_text(json.dumps(header, indent=2) + "\n")
        for name in (_WEIGHTS, _HEADER):
            _sync(aside / name)
        aside.chmod(0o755)
        _put(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return target


def load(path: str | os.PathLike[str]) -> VisionTransformer:
    """Read a saved model: same architecture, weights, dtype, schedule, method and options.

    On the CPU, in evaluation mode. `timm.data.resolve_model_data_config` gives the preprocessing
    it was saved with.

    Raises:
        ValueError: if there is no saved model at `path`, or its weights are not the ones saved.
    """
    source = Path(path)
    header = read_header(source)
    weights = source / _WEIGHTS
    if not weights.is_file() or _sha256(weights) != header.get("sha256"):
        raise ValueError(
            f"{weights} is missing or altered: its sha256 is not the one in the header"
        )
    # Cloned: the file's tensors lie unaligned in memory, which costs the last bit of the products.
    tensors = {name: value.clone() for name, value in load_file(weights).items()}
    try:
        if header["architecture"].get("depth", 0) > len(tensors):
            raise ValueError("it has more blocks than weights")
        model = _blank(header)
        # assign: the loaded tensors become the parameters, so dtype and values are those saved.
        trainable = {name: p.requires_grad for name, p in model.named_parameters()}
        model.load_state_dict(tensors, strict=True, assign=True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])
        pooling = header.get("pooling")
        if pooling is not None:
            pool(model, pooling["schedule"], pooling["method"], **pooling["options"])
        read_config(model, header)
    except _UNFIT as error:
        raise ValueError(f"{source / _HEADER} does not fit its weights: {error}") from None
    return model.eval()


def _blank(header: dict[str, Any]) -> Any:
    """A model of the architecture, on no device but for what its weights do not say."""
    model = build(header["architecture"], device="meta")
    if all(name in model.state_dict() for name, _ in model.named_buffers()):
        return model
    # Rotary angles are not saved: they have to be computed, and in the dtype of the weights.
    return build(header["architecture"]).to(getattr(torch, header["dtype"]))


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON of a saved model, without its weights.

    Raises:
        ValueError: if there is no saved model at `path`, or it is of another release's format.
    """
    source = Path(path)
    try:
        header = json.loads((source / _HEADER).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"there is no saved model at {source}: {error}") from None
    if not isinstance(header, dict) or header.get("format") != "tokenpool":
        raise ValueError(f"{source / _HEADER} does not describe a saved model")
    if header.get("version") != _VERSION:
        raise ValueError(
            f"{source} has format version {header.get('version')}, this release reads {_VERSION}"
        )
    return header


def _put(aside: Path, target: Path) -> None:
    """Rename `aside` to `target`; a directory there is moved away first and then deleted."""
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        target.rename(old / target.name)
        aside.rename(target)
        shutil.rmtree(old)
    else:
        aside.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
