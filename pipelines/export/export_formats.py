"""The formats a model leaves in, and how each is run again to prove that it is the same model."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tokenpool as tp
from pipelines.errors import UserError
from tokenpool.models.preprocessing import class_names, image_config
from tokenpool.patches import patches_of

Run = Callable[[Tensor], Tensor]
"""Images `[B, channels, H, W]`, normalised fp32 → logits `[B, classes]`."""

FORMATS = ("timm", "onnx", "torch-export")
PRECISIONS = ("fp32", "fp16", "int8")
ONNX_NAME, PROGRAM_NAME = "model.onnx", "model.pt2"

_MAX_BATCH = 4096
# What PyTorch writes; older ones lack operators that pooling needs.
_LEAST_OPSET, _LEAST_IR = 18, 8
# What `tokenpool` knows of a model and timm's `create_model` is told otherwise, or not at all.
_NOT_TIMM = ("class", "num_classes", "norm_layer", "norm_eps", "act_layer", "mlp_layer")
_TIMM_ACTIVATIONS = {"GELU": "gelu", "GELU(tanh)": "gelu_tanh", "ReLU": "relu", "SiLU": "silu"}


@dataclass(frozen=True)
class OnnxForm:
    """How an ONNX file is written.

    Attributes:
        precision: One of `PRECISIONS`; images and logits stay float32. int8 has the weights of
            matrix products in 8 bits, and their inputs scaled to 8 bits as they come.
        opset: Version of the operators.
        ir_version: Version of the file format; ONNX Runtime 1.17 reads 9 and opset 20, and below.
    """

    precision: str = "fp32"
    opset: int = 18
    ir_version: int = 9

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise UserError(f"--precision {self.precision} is unknown: use one of {known}")
        if self.opset < _LEAST_OPSET:
            raise UserError(f"--opset {self.opset} is too old: {_LEAST_OPSET} is the least")
        if not self.ir_version >= _LEAST_IR:
            raise UserError(f"--ir-version {self.ir_version} is too old: {_LEAST_IR} is the least")


def write_format(
    model: nn.Module,
    format_name: str,
    folder: Path,
    preprocessing: dict[str, Any],
    form: OnnxForm | None = None,
) -> None:
    """Writes a model, in evaluation mode on the CPU, into an existing folder.

    Args:
        model: A timm ViT, pooled or not.
        format_name: One of `FORMATS`.
        folder: Gets the files.
        preprocessing: `mean` and `std` per channel.
        form: Of an ONNX file.

    Raises:
        UserError: PyTorch cannot export this model to the format.
    """
    if format_name == "timm":
        _write_timm(model, folder, preprocessing)
        return
    try:
        program = _program(model, torch.zeros(2, *_input_size(model)))
        if format_name == "onnx":
            _write_onnx(program, folder / ONNX_NAME, form or OnnxForm())
        else:
            torch.export.save(program, folder / PROGRAM_NAME)
    except UserError:
        raise
    except Exception as error:  # torch.export raises many kinds, with pages of advice
        pooling = tp.pooling_of(model)
        raise UserError(
            f"PyTorch cannot export method {pooling and pooling.method} to {format_name}: "
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

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # not what it cannot fold beforehand
    try:
        session = onnxruntime.InferenceSession(
            folder / ONNX_NAME, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # of many kinds, none of them public
        raise UserError(
            f"ONNX Runtime {onnxruntime.__version__} cannot open the file: "
            f"{str(error).splitlines()[0][:200]}; choose another --opset or --ir-version",
            exit_code=1,
        ) from None

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


def _write_onnx(program: torch.export.ExportedProgram, path: Path, form: OnnxForm) -> None:
    from onnxscript import opset18  # here: the other formats do without it

    op: Any = opset18

    def stable_sort(self: Any, stable: Any = None, dim: int = -1, descending: bool = False) -> Any:
        """PyTorch has no translation of this one; TopK puts equal values in their old order."""
        size = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]), axis=0)
        return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)

    with warnings.catch_warnings(), _quiet("onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")  # about its own deprecations
        exported = torch.onnx.export(
            program,
            (),
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            opset_version=form.opset,
            custom_translation_table={torch.ops.aten.sort.stable: stable_sort},
            verbose=False,
        )
    assert exported is not None
    written = exported.model.opset_imports[""]
    if written != form.opset:
        raise UserError(
            f"--opset {form.opset} cannot be written: PyTorch writes this model with {written}",
            exit_code=1,
        )
    exported.model.ir_version = form.ir_version
    exported.save(path)
    if form.precision != "fp32":
        reduce_onnx(path.parent, form.precision)


def reduce_onnx(folder: Path, precision: str) -> None:
    """Rewrites the ONNX file of a folder, which is float32, as fp16 or int8."""
    import onnx  # here: the other formats do without it

    path = folder / ONNX_NAME
    with _quiet("", "onnxruntime"):  # the converters give advice on the root logger
        if precision == "fp16":
            from onnxruntime.transformers.float16 import (
                DEFAULT_OP_BLOCK_LIST,
                convert_float_to_float16,
            )

            # ONNX Runtime has none of these in fp16 on a CPU.
            blocked = [*DEFAULT_OP_BLOCK_LIST, "Trilu", "ScatterElements", "ScatterND"]
            whole = onnx.load(path)
            half = convert_float_to_float16(whole, keep_io_types=True, op_block_list=blocked)
            onnx.save(half, path)
        else:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            # Not the patch embedding: ONNX Runtime 1.17 has no such convolution.
            quantize_dynamic(
                path, path, ["MatMul", "Gemm"], weight_type=QuantType.QInt8, per_channel=True
            )


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keeps what these loggers say below an error."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
