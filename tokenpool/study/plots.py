"""Plots of the analyses, as PNG files; the one module of the room that uses matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenpool.cost import MacReport
from tokenpool.study.analysis import ErrorPoint, LowPass

__all__ = ["plot_costs", "plot_errors", "plot_low_pass", "plot_token_maps"]


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure of `width` × `height` inches, and its axes `[rows, columns]`."""
    # Imported here: the room does without matplotlib unless something is drawn. The object
    # interface leaves the user's backend and pyplot state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def plot_costs(reports: dict[str, MacReport], path: Path) -> None:
    """Stacked bars: GMACs by component, one bar per named report."""
    figure, axes = _figure(1, 1, 1.8 + 1.4 * len(reports), 4)
    axis = axes[0, 0]
    bottom = np.zeros(len(reports))
    for name in ("mlp", "qkvo", "attention", "clustering", "patch_embed", "head"):
        values = np.array([getattr(report, name) for report in reports.values()]) / 1e9
        axis.bar(list(reports), values, bottom=bottom, label=name.replace("_", " "))
        bottom += values
    axis.set_ylabel("GMACs per image")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def plot_low_pass(rows: Sequence[LowPass], path: Path) -> None:
    """High-frequency share and mean cosine by layer, before and after attention."""
    figure, axes = _figure(1, 2, 9, 3.6)
    layers = [row.layer for row in rows]
    for axis, kind, label in (
        (axes[0, 0], "high", "share of high-frequency energy"),
        (axes[0, 1], "cosine", "mean pairwise cosine"),
    ):
        for stage, name in (
            ("before", "into attention"),
            ("after", "out of attention"),
            ("tokens", "after the block"),
        ):
            values = [getattr(row, f"{kind}_{stage}") for row in rows]
            axis.plot(layers, values, marker="o", markersize=3, label=name)
        axis.set_xlabel("layer")
        axis.set_ylabel(label)
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def plot_errors(points: Sequence[ErrorPoint], path: Path) -> None:
    """Reconstruction error against K: a panel per layer, a line per method."""
    layers = sorted({point.layer for point in points})
    if not layers:  # a model of one patch
        figure, axes = _figure(1, 1, 4.2, 2.6)
        axes[0, 0].set_axis_off()
        axes[0, 0].text(0.5, 0.5, "no layer has tokens to pool", ha="center", va="center")
        figure.savefig(path, dpi=120)
        return
    columns = min(4, len(layers))
    rows = -(-len(layers) // columns)
    figure, axes = _figure(rows, columns, 3.2 * columns + 1, 2.6 * rows + 0.6)
    methods = list(dict.fromkeys(point.method for point in points))
    for axis, layer in zip(axes.flat, layers, strict=False):
        for method in methods:
            mine = [p for p in points if p.layer == layer and p.method == method]
            axis.plot([p.k for p in mine], [p.error for p in mine], marker=".", label=method)
        axis.set_title(f"layer {layer}", fontsize=9)
        axis.set_xlabel("K", fontsize=8)
    for axis in axes.flat[len(layers) :]:
        axis.set_visible(False)
    axes[0, 0].set_ylabel("share of variance lost", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=120)


def plot_token_maps(
    images: Tensor, maps: dict[str, Tensor], grid: tuple[int, int], path: Path
) -> None:
    """Which patches share a cluster, drawn over the images: patches of one token get its mean.

    Args:
        images: the images `[B, C, H, W]`, in any range: each is stretched to black and white. Of
            more than three channels the first three are shown, of fewer their mean as grey.
        maps: for each name (a column) the token of every patch `[B, rows · columns]`.
        grid: (rows, columns) of patches.
        path: where the PNG goes.
    """
    count = len(images)
    figure, axes = _figure(count, 1 + len(maps), 1.9 * (1 + len(maps)), 2.0 * count + 0.3)
    for row in range(count):
        image = images[row].detach().float().cpu()
        image = image[:3] if len(image) >= 3 else image.mean(0, keepdim=True).expand(3, -1, -1)
        image = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-6)
        pixels = image.permute(1, 2, 0).numpy()
        axes[row, 0].imshow(pixels)
        for column, (name, assignment) in enumerate(maps.items(), start=1):
            label = assignment[row].detach().cpu().view(grid)
            axis = axes[row, column]
            axis.imshow(_painted(image, label))
            _draw_borders(axis, label.numpy(), pixels.shape[0] / grid[0], pixels.shape[1] / grid[1])
            if row == 0:
                axis.set_title(name, fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(path, dpi=120)


def _painted(image: Tensor, label: Tensor) -> np.ndarray:
    """The image with every cluster painted in its mean colour `[H, W, 3]`."""
    height, width = image.shape[1:]
    rows = torch.arange(height) * label.shape[0] // height
    columns = torch.arange(width) * label.shape[1] // width
    cluster = label[rows][:, columns].flatten()
    pixels = image.flatten(1).T
    count = int(cluster.max()) + 1
    sums = torch.zeros(count, 3).index_add_(0, cluster, pixels)
    size = torch.bincount(cluster, minlength=count).clamp_min(1).unsqueeze(1)
    painted: np.ndarray = (sums / size)[cluster].view(height, width, 3).numpy()
    return painted


def _draw_borders(axis: Any, label: np.ndarray, height: float, width: float) -> None:
    """Lines between patches of different clusters."""
    from matplotlib.collections import LineCollection

    upright = [
        [((c + 1) * width - 0.5, r * height - 0.5), ((c + 1) * width - 0.5, (r + 1) * height - 0.5)]
        for r, c in zip(*np.nonzero(label[:, 1:] != label[:, :-1]), strict=True)
    ]
    level = [
        [(c * width - 0.5, (r + 1) * height - 0.5), ((c + 1) * width - 0.5, (r + 1) * height - 0.5)]
        for r, c in zip(*np.nonzero(label[1:] != label[:-1]), strict=True)
    ]
    axis.add_collection(LineCollection(upright + level, colors="red", linewidths=0.7))
