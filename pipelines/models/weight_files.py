"""Files of weights, and folders of shards, read without running anything in them.

Nothing here unpickles: safetensors, or `torch.load` with `weights_only=True`. Of what training
scripts put beside the weights, `argparse.Namespace` is read; objects of configuration libraries
become empty ones, whose code is neither imported nor run; everything else is refused by name.
"""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import re
import warnings
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipelines.errors import UserError

logger = logging.getLogger(__name__)
_FOLDER_FILES = (
    "model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "model.pth",
    "pytorch_model.pth", "mp_rank_00_model_states.pt", "pytorch_model/mp_rank_00_model_states.pt",
)  # fmt: skip
# Of these libraries, objects that only describe a run.
_INERT = (
    "pathlib", "omegaconf.", "lightning.", "lightning_fabric.", "pytorch_lightning.", "numpy.",
    "yacs.", "mmengine.", "mmcv.", "easydict.", "addict.", "ml_collections.", "datetime.",
    "types.SimpleNamespace", "deepspeed.", "typing.", "enum.", "collections.",
)  # fmt: skip
# Of a defaultdict; harmless themselves.
_TYPES = {kind.__name__: kind for kind in (list, dict, tuple, int, float, str, bool)}
_MOST_INERT = 64
_SUFFIXES = ".safetensors, .pth, .pt, .bin, .ckpt, .th, .tar, or a folder of shards"


def read_folder(folder: Path) -> Any:
    """What the one file of weights in a folder holds, or all shards of a list.

    Raises:
        UserError: there is none, or it cannot be read safely.
    """
    for index in sorted(folder.glob("*.index.json")):
        return _read_shards(index)
    latest = folder / "latest"
    if latest.is_file():  # DeepSpeed's
        inner = folder / Path(latest.read_text(errors="replace").strip()).name
        if inner.is_dir():
            return read_folder(inner)
    if any(folder.glob("zero_pp_rank_*_model_states.pt")):
        raise UserError(
            f"{folder} holds weights that DeepSpeed's ZeRO stage 3 has cut into pieces: make one "
            "file of them with its zero_to_fp32.py"
        )
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return read_file(folder / name)
    found = sorted(p for p in folder.iterdir() if p.is_file() and _kind(p) is not None)
    if len(found) == 1:
        return read_file(found[0])
    what = f"{len(found)} files of weights" if found else "no file of weights"
    raise UserError(
        f"there is no saved model at {folder}, and {what}: give the file itself ({_SUFFIXES})"
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{index} does not list shards: it has no weight_map") from None
    tensors: dict[str, Tensor] = {}
    for name in names:
        # A list that came from elsewhere must not name files outside its folder.
        shard = index.parent / Path(str(name)).name
        if not shard.is_file():
            raise UserError(f"{index} names {name}, which is not beside it: fetch all shards")
        tensors |= read_file(shard)
    return tensors


def _kind(path: Path) -> str | None:
    """What a file is by its first bytes: safetensors, torch, or None."""
    with path.open("rb") as file:
        head = file.read(16)
    if head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "torch"
    size = int.from_bytes(head[:8], "little")
    if len(head) > 8 and head[8:9] == b"{" and size < path.stat().st_size:
        return "safetensors"
    return None


def read_file(path: Path) -> Any:
    """What a file of weights holds: a dict of tensors, or what a training script put around it.

    Raises:
        UserError: it is none, or cannot be read safely.
    """
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    try:
        kind = _kind(path)
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not head:
        raise UserError(f"{path} is empty: fetch or write it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a git-lfs pointer, not the weights: run `git lfs pull`")
    if path.suffix == ".npz":
        raise UserError(
            f"{path} is JAX's: load it with timm (create_model(…, checkpoint_path=…)) and save the "
            "state dict"
        )
    if kind is None and path.suffix not in (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".th"):
        raise UserError(f"{path}: weights are read from {_SUFFIXES}")
    if kind == "safetensors" or path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # safetensors raises its own, which Python cannot name
            raise UserError(
                f"{path} cannot be read as weights alone: {first_line(error)}"
            ) from None
    if kind is None and head.lstrip()[:1] in (b"<", b"{"):
        raise UserError(f"{path} holds no weights but a web page or text: fetch it again")
    _check_sums(path)
    return _load_torch(path)


def _check_sums(path: Path) -> None:
    """Compares the checksums that torch writes, and does not read."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, zlib.error):
        return  # torch says what is wrong with it
    if damaged is not None:
        logger.warning(
            "%s: the checksum of %s does not agree: it is damaged, or was written without "
            "checksums: fetch it again if you can", path, damaged
        )  # fmt: skip


class _Nothing:
    """Stands in for an object that only describes a run: takes what it is given and stays empty."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _EmptyDict:
    """Stands in for a dict of such a library: torch fills none but plain ones."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


def _load_torch(path: Path) -> Any:
    allowed: list[Any] = [argparse.Namespace]
    for _ in range(_MOST_INERT):
        try:
            with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickle protocols
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
            strange = named.group(1) if named else None
            if strange is None or not (strange in _TYPES or strange.startswith(_INERT)):
                raise _refusal(path, strange, error) from None
            is_dict = re.search("dict|CfgNode", strange, re.IGNORECASE)
            stand_in = type(strange, (_EmptyDict if is_dict else _Nothing,), {})
            allowed.append(_TYPES.get(strange, (stand_in, strange)))
        except Exception as error:  # torch raises many kinds for a damaged or foreign file
            raise _refusal(path, None, error) from None
    raise UserError(f"{path} cannot be read as weights alone: it is full of other objects")


def _refusal(path: Path, strange: str | None, error: Exception) -> UserError:
    remedy = "save the weights alone: torch.save(model.state_dict(), FILE)"
    if "TorchScript" in str(error):
        return UserError(f"{path} is a TorchScript program, not weights: {remedy}")
    if strange is not None:
        whole = " (a whole model was pickled)" if "torch.nn" in strange or "timm" in strange else ""
        return UserError(
            f"{path} cannot be read as weights alone: it holds a {strange}{whole}, which might run "
            f"code; {remedy}"
        )
    return UserError(f"{path} cannot be read as weights alone: {first_line(error)}; {remedy}")


def first_line(error: Exception) -> str:
    """The first sentence of a message, without a terminal's colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip() or type(error).__name__
    return re.split(r"\n|(?<=[a-z])\. ", plain)[0].strip().rstrip(".")[:200]
