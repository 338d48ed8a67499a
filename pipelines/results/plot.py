"""The front as a picture, drawn by matplotlib without a display."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipelines.results.front import Front
from pipelines.results.page import OutsideFront
from pipelines.results.points import error

# Okabe and Ito's palette: told apart without colour vision; shapes differ as well.
POOLED, DENSE, CONSTANT, OTHER = "#0072B2", "#D55E00", "#9A6700", "#8A8A8A"
_OUTSIDE = (("^", "#009E73"), ("P", "#CC79A7"), ("*", "#56B4E9"), ("p", "#7D4698"))


@dataclass(frozen=True)
class _Group:
    """Points that share a sign: (GMACs, percent, half an error bar in percent or 0)."""

    label: str
    marker: str
    colour: str
    places: list[tuple[float, float, float]]
    hollow: bool = False


def front_figure(
    front: Front, others: Sequence[OutsideFront] = (), images: int | None = None
) -> Figure:
    """GMACs against top-1 (minival): staircase, finals, baselines, other fronts, the knee.

    Where the number of minival's images is known, points of one seed have error bars too.
    """
    figure = Figure(figsize=(8, 5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _staircase(axes, front)
    groups = [group for group in _groups(front, others, images) if group.places]
    for group in groups:
        _scatter(axes, group)
    _mark_knee(axes, front)
    _name_widths(axes, front)
    axes.set_xlabel("GMACs per image (clustering included)")
    axes.set_ylabel("top-1 on minival, %")
    axes.set_title(f"{front.name}: {len(front.on_front)} models on the front", loc="left")
    axes.grid(alpha=0.25)
    axes.margins(x=0.06, y=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    if groups:
        # Below the axes: inside them it would cover a point sooner or later.
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    else:
        axes.text(0.5, 0.5, "no finished model yet", ha="center", transform=axes.transAxes)
    return figure


def _groups(front: Front, others: Sequence[OutsideFront], images: int | None) -> list[_Group]:
    def places(kind: str, on_front: bool | None = None) -> list[tuple[float, float, float]]:
        return [
            (
                point.gmacs,
                100 * (point.top1_minival or 0.0),
                100 * (error(point.top1_minival, point.minival_spread, images) or 0.0),
            )
            for point in front.points
            if point.finished and point.kind == kind and on_front in (None, point.on_front)
        ]

    outside = [
        _Group(
            other.name,
            *_OUTSIDE[index % len(_OUTSIDE)],
            [(p.gmacs, 100 * p.top1, 100 * (p.top1_std or 0.0)) for p in other.points],
        )
        for index, other in enumerate(others)
    ]
    return [
        _Group("dominated", "o", OTHER, places("final", False), hollow=True),
        *outside,
        _Group("constant keep-rate", "D", CONSTANT, places("constant")),
        _Group("dense widths", "s", DENSE, places("dense")),
        _Group("pooled, on the front", "o", POOLED, places("final", True)),
    ]


def _scatter(axes: Axes, group: _Group) -> None:
    costs, tops, errors = zip(*group.places, strict=True)
    if any(errors):
        axes.errorbar(
            costs, tops, yerr=errors, fmt="none", ecolor=group.colour, elinewidth=1, capsize=3
        )
    axes.scatter(
        costs,
        tops,
        s=34 if group.hollow else 52,
        marker=group.marker,
        facecolors="white" if group.hollow else group.colour,
        edgecolors=group.colour,
        linewidths=1.2,
        zorder=3,
        label=group.label,
    )


def _staircase(axes: Axes, front: Front) -> None:
    costs = [point.gmacs for point in front.on_front]
    tops = [100 * (point.top1_minival or 0.0) for point in front.on_front]
    if costs:
        right = max(costs[-1], front.reference_gmacs)
        axes.step([*costs, right], [*tops, tops[-1]], where="post", color=POOLED, lw=1.6, alpha=0.7)


def _name_widths(axes: Axes, front: Front) -> None:
    for point in front.points:
        if point.kind == "dense" and point.finished:
            axes.annotate(
                f"width {point.width}",
                (point.gmacs, 100 * (point.top1_minival or 0.0)),
                xytext=(8, -14),
                textcoords="offset points",
                fontsize=8,
                color=DENSE,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8},
            )


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
