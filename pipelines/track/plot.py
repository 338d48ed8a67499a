"""The front as a picture, drawn by matplotlib without a display."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipelines.track.files import write_atomic
from pipelines.track.front import Front, Point

# Okabe and Ito's palette: told apart without colour vision; shapes differ as well.
POOLED, DENSE, OTHER = "#0072B2", "#D55E00", "#8A8A8A"


def front_figure(front: Front) -> Figure:
    """GMACs against top-1 (minival): staircase, pooled finals, dense widths, the knee."""
    figure = Figure(figsize=(8, 5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    finished = [point for point in front.points if point.finished]
    _staircase(axes, front)
    groups = [
        ("dominated", [p for p in finished if not p.on_front and p.kind == "final"], "o", OTHER),
        ("dense widths", [p for p in finished if p.kind == "dense"], "s", DENSE),
        ("pooled, on the front", [p for p in front.on_front if p.kind == "final"], "o", POOLED),
    ]
    for label, points, marker, colour in groups:
        if points:
            hollow = label == "dominated"
            axes.scatter(
                [point.gmacs for point in points],
                [100 * (point.top1_minival or 0.0) for point in points],
                s=34 if hollow else 52,
                marker=marker,
                facecolors="white" if hollow else colour,
                edgecolors=colour,
                linewidths=1.2,
                zorder=3,
                label=label,
            )
    _mark_knee(axes, front)
    for point in finished:
        if point.kind == "dense":
            axes.annotate(
                f"width {point.width}",
                (point.gmacs, 100 * (point.top1_minival or 0.0)),
                xytext=(0, -16),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=DENSE,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8},
            )
    axes.set_xlabel("GMACs per image (clustering included)")
    axes.set_ylabel("top-1 on minival, %")
    axes.set_title(f"{front.name}: {len(front.on_front)} models on the front", loc="left")
    axes.grid(alpha=0.25)
    axes.margins(x=0.06, y=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    if finished:
        # Above the axes: inside them it would cover a point sooner or later.
        axes.legend(
            loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, frameon=False, fontsize=9
        )
    else:
        axes.text(0.5, 0.5, "no finished model yet", ha="center", transform=axes.transAxes)
    return figure


def write_png(front: Front, path: Path) -> None:
    """The figure as a PNG file.

    Raises:
        UserError: The target cannot be written.
    """
    figure = front_figure(front)
    write_atomic(path, lambda aside: figure.savefig(aside, format="png"))


def staircase(points: tuple[Point, ...]) -> tuple[list[float], list[float]]:
    """Corners of the front, GMACs and percent: what top-1 one can have at each cost."""
    costs = [point.gmacs for point in points]
    return costs, [100 * (point.top1_minival or 0.0) for point in points]


def _staircase(axes: Axes, front: Front) -> None:
    costs, tops = staircase(front.on_front)
    if costs:
        right = max(costs[-1], front.reference_gmacs)
        axes.step([*costs, right], [*tops, tops[-1]], where="post", color=POOLED, lw=1.6, alpha=0.7)


def _mark_knee(axes: Axes, front: Front) -> None:
    knee = front.knee
    if knee is None or knee.top1_minival is None:
        return
    place = (knee.gmacs, 100 * knee.top1_minival)
    axes.scatter(*place, s=190, facecolors="none", edgecolors="black", linewidths=1.3, zorder=4)
    axes.annotate(
        f"knee: {place[1]:.1f} % at {100 * knee.dense_share:.0f} % of dense",
        place,
        # Above and left of a front there is nothing, by definition.
        xytext=(0.02, 0.95),
        textcoords="axes fraction",
        fontsize=9,
        arrowprops={"arrowstyle": "-", "color": "black", "lw": 0.8, "shrinkB": 8},
    )
