"""Initial weights of a model: from where they come, and made to fit its shape.

Nothing here unpickles: safetensors, or `torch.load` with `weights_only=True`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

import tokenpool as tp
from pipelines.errors import UserError
from pipelines.storage.copies import local_path

logger = logging.getLogger(__name__)
_PICKLES = (".pth", ".pt", ".bin")
_HEADS = ("head.", "head_dist.")


def read_weights(source: str) -> dict[str, Tensor]:
    """The state dict behind a `tp.save` folder, a safetensors or `.pth` file, or a timm name.

    Folder and file may be at an address (`s3://…`), from where they are fetched.

    Raises:
        UserError: there is nothing of these, or the file cannot be read safely.
    """
    path = local_path(source)
    if path.is_dir():
        try:
            return tp.load(path).state_dict()
        except ValueError as error:
            raise UserError(str(error)) from None
    if path.is_file():
        return _read_file(path)
    if timm.is_model(source):
        return pretrained(source).state_dict()
    raise UserError(
        f"no weights at {source}: give a saved model's folder, a .safetensors or .pth file, "
        "or the name of a timm model"
    )


def pretrained(name: str) -> Any:
    """A timm model with the weights timm knows for it.

    Raises:
        UserError: it has none, or they cannot be fetched.
    """
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # timm raises its own, the hub's and the network's
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"no weights for {name}: {first}: give a file of them, or fetch them where there is "
            "a network",
            exit_code=1,
        ) from None


def load_into(model: VisionTransformer, source: str) -> VisionTransformer:
    """Loads weights into a model of another class count, image size or patch size.

    Position and patch embeddings are resampled (by timm); a head for other classes stays as
    the model has it. Everything else must fit.

    Raises:
        UserError: a tensor has another shape, or is missing.
    """
    state = checkpoint_filter_fn(read_weights(source), model)
    own = model.state_dict()
    fresh = {
        name
        for name, value in state.items()
        if name.startswith(_HEADS) and name in own and own[name].shape != value.shape
    }
    for name, value in state.items():
        if name in own and name not in fresh and own[name].shape != value.shape:
            raise UserError(
                f"{source} does not fit: {name} is {tuple(value.shape)} there and "
                f"{tuple(own[name].shape)} in the model"
            )
    kept = {name: value for name, value in state.items() if name in own and name not in fresh}
    missing = sorted(own.keys() - kept.keys() - fresh)
    missing = [name for name in missing if not name.startswith(_HEADS)]
    if missing:
        raise UserError(f"{source} does not fit: it has no {missing[0]}")
    if fresh:
        logger.info("%s is for other classes: the head starts anew", source)
    model.load_state_dict(kept, strict=False)
    return model


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in _PICKLES:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise UserError(f"{path}: weights are read from .safetensors and {', '.join(_PICKLES)}")
    except UserError:
        raise
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{path} cannot be read as weights alone: {first}") from None
    for key in ("model", "state_dict", "model_ema"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            return dict(loaded[key])
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds no state dict")
    return loaded
