"""The formats a model leaves in, and how each is run again to prove that it is the same model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tokenpool as tp
from pipelines.errors import UserError
from tokenpool.patches import patches_of
from tokenpool.preprocessing import class_names, image_config

Run = Callable[[Tensor], Tensor]
"""Images `[B, channels, H, W]`, normalised fp32 → logits `[B, classes]`."""

FORMATS = ("timm", "onnx", "torch-export")
ONNX_NAME, PROGRAM_NAME = "model.onnx", "model.pt2"

_MAX_BATCH = 4096
# What `tokenpool` knows of a model and timm's `create_model` is told otherwise, or not at all.
_NOT_TIMM = ("class", "num_classes", "norm_layer", "norm_eps", "act_layer", "mlp_layer")
_TIMM_ACTIVATIONS = {"GELU": "gelu", "GELU(tanh)": "gelu_tanh", "ReLU": "relu", "SiLU": "silu"}


def write_format(
    model: nn.Module, format_name: str, folder: Path, preprocessing: dict[str, Any]
) -> None:
    """Writes a model, in evaluation mode on the CPU, into an existing folder.

    Args:
        model: A timm ViT, pooled or not.
        format_name: One of `FORMATS`.
        folder: Gets the files.
        preprocessing: `mean` and `std` per channel.

    Raises:
        UserError: PyTorch cannot export this model to the format.
    """
    if format_name == "timm":
        _write_timm(model, folder, preprocessing)
        return
    try:
        program = _program(model, torch.zeros(2, *_input_size(model)))
        if format_name == "onnx":
            _write_onnx(program, folder / ONNX_NAME)
        else:
            torch.export.save(program, folder / PROGRAM_NAME)
    except Exception as error:  # torch.export raises many kinds, with pages of advice
        raise UserError(
            f"PyTorch cannot export method {tp.method_of(model)} to {format_name}: "
            f"{str(error).splitlines()[0][:200]}; --format timm always works",
            exit_code=1,
        ) from None


def open_format(format_name: str, folder: Path) -> Run:
    """Reads what `write_format` wrote and returns how to run it on the CPU."""
    if format_name == "timm":
        loaded = tp.load(folder).eval()
        return loaded
    if format_name == "torch-export":
        module = torch.export.load(folder / PROGRAM_NAME).module()
        return module
    import onnxruntime  # here: the other formats do without it

    session = onnxruntime.InferenceSession(folder / ONNX_NAME, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    return run


def _input_size(model: nn.Module) -> tuple[int, int, int]:
    """(channels, height, width) of the images a model takes."""
    vit: Any = model
    return (vit.in_chans, *(patches_of(model).img_size or (0, 0)))


def _program(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)
    with torch.no_grad():
        return torch.export.export(model, (images,), dynamic_shapes=({0: batch},))


def _write_timm(model: nn.Module, folder: Path, preprocessing: dict[str, Any]) -> None:
    """`tp.save` plus the config.json that `timm.create_model("local-dir:…")` reads.

    timm gives the dense model with these weights; `tokenpool.load` gives the pooled one.
    """
    target = folder / "saved"
    tp.save(model, target)
    for path in target.iterdir():
        path.rename(folder / path.name)
    target.rmdir()
    described = json.loads((folder / "model.json").read_text())["architecture"]
    distilled = described["class"] == "distilled"
    if described["class"] == "timm":
        name, arguments = described["name"], described["arguments"]
    else:
        name = "deit_base_distilled_patch16_224" if distilled else "vit_base_patch16_224"
        arguments = {k: v for k, v in described.items() if k not in _NOT_TIMM}
        activation = described["act_layer"].removeprefix("timm.")
        arguments["act_layer"] = _TIMM_ACTIVATIONS.get(activation, activation)
    config = {
        "architecture": name,
        "num_classes": described["num_classes"],
        "model_args": arguments,
        "pretrained_cfg": {
            **image_config(model),
            "label_names": class_names(model),
            "input_size": list(_input_size(model)),
            "num_classes": described["num_classes"],
            "mean": preprocessing["mean"],
            "std": preprocessing["std"],
            "first_conv": "patch_embed.proj" if hasattr(model, "patch_embed") else "embeds.proj",
            "classifier": ["head", "head_dist"] if distilled else "head",
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    from onnxscript import opset18  # here: the other formats do without it

    op: Any = opset18

    def stable_sort(self: Any, stable: Any = None, dim: int = -1, descending: bool = False) -> Any:
        """PyTorch has no translation of this one; TopK puts equal values in their old order."""
        size = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]), axis=0)
        return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own deprecations
        exported = torch.onnx.export(
            program,
            (),
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            custom_translation_table={torch.ops.aten.sort.stable: stable_sort},
            verbose=False,
        )
    assert exported is not None
    exported.save(path)
