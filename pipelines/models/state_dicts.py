"""State dicts as people have them: what training scripts and wrappers put around the weights."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pipelines.errors import UserError
from pipelines.models.foreign_weight_names import in_timms_names, said_by_transformers
from pipelines.models.weight_files import first_line, read_file, read_folder

# Averaged weights: better than the plain ones beside them, and what their scripts report.
_EMA_KEYS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema",
    "params_ema", "teacher", "target_encoder", "swa_state_dict",
)  # fmt: skip
_PLAIN_KEYS = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "net", "network",
    "weights", "params", "student", "encoder", "backbone", "vision_model",
)  # fmt: skip
_EMA_WORDS = ("ema", "teacher", "averaged", "swa", "momentum", "target")
# What wrappers put in the middle of names as well.
_WRAPPERS = (
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
    "_forward_module.",
)
_RUN_WORDS = ("optim", "sched", "scaler", "loss", "rng", "callback", "loop")
_ANCHORS = ("patch_embed.proj.weight", "patch_embed.proj.bias", "blocks.0.norm1.weight")
_HEADS = ("head", "classifier", "fc", "linear", "linear_head", "cls_head")
_NOT_SHARED = ("criterion", "loss", "metric", "optimizer", "text", "logit", "queue", "center")


@dataclass(frozen=True)
class StateDict:
    """Weights of one model, by the names they have in it.

    `notes` are of what was chosen, renamed or left out; `said` is what the file says of its model
    beside the weights, as its script named it.
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    said: dict[str, Any] = field(default_factory=dict)


def read_state_dict(path: Path) -> StateDict:
    """The weights in a file, or in a folder of one file or of shards.

    Raises:
        UserError: nothing there holds weights that can be read safely.
    """
    loaded = read_folder(path) if path.is_dir() else read_file(path)
    notes: list[str] = []
    said = _said(loaded)
    if path.is_dir():
        said = _config_of(path) | said
    state = _unwrapped(loaded, path, notes)
    return StateDict(_renamed(state, path, notes), tuple(notes), said)


def _unwrapped(loaded: Any, path: Path, notes: list[str]) -> dict[str, Tensor]:
    """The innermost dict of tensors of a container."""
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds no state dict but a {type(loaded).__name__}")
    inner = {
        key: value
        for key, value in loaded.items()
        if _holds_tensors(value) and not any(word in str(key).lower() for word in _RUN_WORDS)
    }
    averaged = next((key for key in _EMA_KEYS if key in inner), None)
    plain = next((key for key in _PLAIN_KEYS if key in inner), None)
    if averaged == "teacher" and plain not in (None, "student"):
        averaged = None  # whom the model learned from, not its average
    chosen = averaged or plain
    if chosen is None and inner and not _tensors(loaded):
        if len(inner) > 1:
            raise UserError(
                f"{path} holds several sets of weights ({', '.join(map(str, inner))}): save the "
                "one that is meant alone"
            )
        (chosen,) = inner
    if chosen is None:
        found = _tensors(loaded)
        if not found:
            keys = ", ".join(map(str, list(loaded)[:5])) or "nothing"
            raise UserError(f"{path} holds no state dict: it has {keys}")
        return found
    if averaged is not None:
        beside = f", not {plain}" if plain is not None else ""
        notes.append(f"its averaged weights are taken ({averaged}{beside})")
    return _unwrapped(loaded[chosen], path, notes)


def _tensors(values: dict[Any, Any]) -> dict[str, Tensor]:
    return {
        key: value
        for key, value in values.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, dict) and (
        any(isinstance(v, Tensor) and v.ndim > 0 for v in value.values())
        or any(_holds_tensors(v) for v in value.values())
    )


def _renamed(state: dict[str, Tensor], path: Path, notes: list[str]) -> dict[str, Tensor]:
    """The weights of the ViT among them, under its own names."""
    for wrapper in _WRAPPERS:
        state = {key.replace(wrapper, ""): value for key, value in state.items()}
    state = {
        key: value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked") and key != "n_averaged"
    }
    if any(key.startswith(("visual.", "module.visual.")) for key in state):
        return state  # timm knows CLIP's own names
    state = in_timms_names(state, notes)
    prefixes: list[str] = []
    for anchor in _ANCHORS:
        prefixes = sorted({k[: -len(anchor)] for k in state if f".{k}".endswith(f".{anchor}")})
        if prefixes:
            break
    if not prefixes:
        # Nothing says which part is the ViT: what all share is a wrapper's.
        while state and all(key.startswith("module.") for key in state):
            state = {key.removeprefix("module."): value for key, value in state.items()}
        return state
    prefix = _chosen(prefixes, path, notes)
    if not prefix:
        return state
    kept = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    beside = [k for k in state if not k.startswith(prefix)]
    return _with_outer_head(kept, state, beside, prefix, path, notes)


def _chosen(prefixes: list[str], path: Path, notes: list[str]) -> str:
    if len(prefixes) == 1:
        return prefixes[0]
    averaged = [p for p in prefixes if any(word in p.lower() for word in _EMA_WORDS)]
    if len(averaged) == 1:
        rest = ", ".join(repr(p) for p in prefixes if p != averaged[0])
        notes.append(f"its averaged weights are taken ({averaged[0]!r}, not {rest})")
        return averaged[0]
    if "" in prefixes:
        return ""
    raise UserError(
        f"{path} holds several models ({', '.join(prefixes)}): save the one that is meant alone"
    )


def _with_outer_head(
    kept: dict[str, Tensor],
    state: dict[str, Tensor],
    beside: list[str],
    prefix: str,
    path: Path,
    notes: list[str],
) -> dict[str, Tensor]:
    """The body's weights with the head that stands beside the body, where it has none itself."""
    outer = prefix.rstrip(".").rpartition(".")[0]
    outer = f"{outer}." if outer else ""
    near = [
        k for k in beside
        if k.startswith(outer) and not any(w in k.lower() for w in (*_NOT_SHARED, *_EMA_WORDS))
        and not k.startswith("student.")
    ]  # fmt: skip
    if not any(key.startswith("head.") for key in kept):
        for name in _HEADS:
            found = [k for k in near if k in (f"{outer}{name}.weight", f"{outer}{name}.bias")]
            if found and state[found[-1] if len(found) == 1 else f"{outer}{name}.weight"].ndim == 2:
                kept |= {f"head.{k.rpartition('.')[2]}": state[k] for k in found}
                notes.append(f"{outer}{name} is its head")
                others = [k for k in near if k not in found]
                if others:
                    raise UserError(
                        f"{path} does not fit: beside {prefix.rstrip('.')} and "
                        f"{outer}{name} it has {others[0]}, which a plain ViT has not"
                    )
                break
    if beside and len(beside) > sum(k.startswith("head.") for k in kept):
        parts = sorted({k.split(".")[0] for k in beside} - {prefix.split(".")[0]} or {beside[0]})
        notes.append(f"left out beside the model: {', '.join(parts[:4])}")
    return kept


def _said(loaded: Any) -> dict[str, Any]:
    """What a script wrote of its model and run, as one dict: `arch`, `num_heads`, …"""
    if not isinstance(loaded, dict):
        return {}
    found: dict[str, Any] = {}
    for key in ("args", "hyper_parameters", "config", "cfg", "model_args", "model_config"):
        value = loaded.get(key)
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        if isinstance(value, dict):
            found |= {k: v for k, v in value.items() if isinstance(k, str)}
            for part in _PLAIN_KEYS:  # what configuration libraries nest
                if isinstance(value.get(part), dict):
                    found |= {k: v for k, v in value[part].items() if isinstance(k, str)}
    for key in ("arch", "model_name", "architecture", "classes", "class_to_idx", "label_names"):
        if loaded.get(key) is not None and not isinstance(loaded[key], Tensor):
            found[key] = loaded[key]
    if isinstance(found.get("model_kwargs"), dict):
        # What a script was not told (None) does not hide what its model was.
        found = found["model_kwargs"] | {k: v for k, v in found.items() if v is not None}
    return found


def _config_of(folder: Path) -> dict[str, Any]:
    """The config.json that hubs put beside the weights, and what transformers says of images."""
    config = read_json(folder / "config.json")
    if "architectures" not in config:
        return config
    return config | said_by_transformers(config, read_json(folder / "preprocessor_config.json"))


def read_json(path: Path) -> dict[str, Any]:
    """What a file of JSON says; nothing, where there is none.

    Raises:
        UserError: it is no JSON.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no JSON: {first_line(error)}") from None
    return found if isinstance(found, dict) else {}
