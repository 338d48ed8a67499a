"""DINOv2's ViT-S/14 out of the wheel's ONNX file, with a linear head for a set of pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["backbone", "dense_features", "fit_head", "state_from_onnx"]

_ARCHITECTURE, _DEPTH, _NATIVE = "vit_small_patch14_dinov2", 12, 518
_CLASS_POSITION, _POSITIONS = "onnx::Concat_1957", "onnx::Reshape_1962"
_REGULARISATION = 0.1  # sklearn's C


def state_from_onnx(path: Path) -> dict[str, Tensor]:
    """The backbone's weights under timm's names.

    Biases, norms and scales are stored under their own names. A matrix has none: it is found by
    the node that multiplies by it, and stands transposed there.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    stored = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    matrices: dict[str, Tensor] = {}
    for node in graph.node:
        if node.op_type == "MatMul":
            for name in node.input:
                if name in stored:
                    matrices[node.name] = stored[name].T.contiguous()
    embeddings = "backbone.embeddings."
    state = {
        "cls_token": stored[embeddings + "cls_token"],
        "pos_embed": torch.cat((stored[_CLASS_POSITION], stored[_POSITIONS]), 1),
    }
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = stored[
            f"{embeddings}patch_embeddings.projection.{kind}"
        ]
        state[f"norm.{kind}"] = stored[f"backbone.layernorm.{kind}"]
    for index in range(_DEPTH):
        ours, theirs = f"blocks.{index}.", f"backbone.encoder.layer.{index}."
        nodes = f"/backbone/encoder/layer.{index}/"
        for kind in ("weight", "bias"):
            for norm in ("norm1", "norm2"):
                state[f"{ours}{norm}.{kind}"] = stored[f"{theirs}{norm}.{kind}"]
        for scale in (1, 2):
            state[f"{ours}ls{scale}.gamma"] = stored[f"{theirs}layer_scale{scale}.lambda1"]
        layers = {
            "attn.proj": "attention/output/dense",
            "mlp.fc1": "mlp/fc1",
            "mlp.fc2": "mlp/fc2",
        }
        for mine, its in layers.items():
            state[f"{ours}{mine}.weight"] = matrices[f"{nodes}{its}/MatMul"]
            state[f"{ours}{mine}.bias"] = stored[f"{theirs}{its.replace('/', '.')}.bias"]
        parts = [f"attention/attention/{part}" for part in ("query", "key", "value")]
        state[f"{ours}attn.qkv.weight"] = torch.cat(
            [matrices[f"{nodes}{part}/MatMul"] for part in parts]
        )
        state[f"{ours}attn.qkv.bias"] = torch.cat(
            [stored[f"{theirs}{part.replace('/', '.')}.bias"] for part in parts]
        )
    return state


def backbone(state: dict[str, Tensor], image_size: int, num_classes: int = 0) -> Any:
    """timm's model with these weights, its positions resampled for another image size."""
    model: Any = timm.create_model(_ARCHITECTURE, num_classes=num_classes, img_size=_NATIVE)
    missing, unexpected = model.load_state_dict(state, strict=False)
    lacking = [name for name in missing if not name.startswith("head.")]
    if lacking or unexpected:
        raise ValueError(f"the ONNX file does not fit {_ARCHITECTURE}: {lacking + unexpected}")
    model.set_input_size((image_size, image_size))
    return model.eval()


@torch.inference_mode()
def dense_features(
    model: Any, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What the head is given `[n, width]`, and the labels `[n]`."""
    found = [
        (model.forward_head(model.forward_features(x), pre_logits=True), y) for x, y in batches
    ]
    features, labels = zip(*found, strict=True)
    return torch.cat(features).numpy(), torch.cat(labels).numpy()


def fit_head(model: Any, features: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    """Gives a model without a head the one that logistic regression finds."""
    from sklearn.linear_model import LogisticRegression

    classes = int(labels.max()) + 1
    if len(np.unique(labels)) < classes:
        raise ValueError("a class has no training picture: give each at least one")
    found = LogisticRegression(C=_REGULARISATION, max_iter=5000).fit(features, labels)
    weight, bias = found.coef_, found.intercept_
    if len(weight) == 1:  # of two classes sklearn keeps one row
        weight, bias = np.concatenate((0 * weight, weight)), np.concatenate((0 * bias, bias))
    model.reset_classifier(classes)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(weight))
        model.head.bias.copy_(torch.from_numpy(bias))
