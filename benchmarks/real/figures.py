"""The rows as a table in Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.real.bootstrap import ratio_interval
from benchmarks.real.variants import REFERENCES
from benchmarks.real.zero_shot import Row, Rows

__all__ = ["draw", "markdown"]

_OF_REFERENCE = ("constant rate", "constant number")


def _time(row: Row) -> str:
    """Milliseconds and speed-up; none where the machine was busy, until `time` is run."""
    if row["milliseconds"] is None:
        return "– | –"
    return f"{row['milliseconds']:.1f} | {row['dense_milliseconds'] / row['milliseconds']:.2f}"


def markdown(rows: Rows) -> str:
    """One table a data set and picture size: for each cost the methods, the best first.

    A method's shapes but the constant rate are told by the best of them.
    """
    parts = ["# What pooling loses on a real ViT, untrained", "", _ABOUT]
    for data, size, images in _settings(rows.rows):
        mine = [
            r
            for r in rows.rows
            if (r["data"], r["image_size"], r["images"]) == (data, size, images)
        ]
        first = mine[0]
        parts += ["", f"## {data}, {size} px, {images} pictures of val", ""]
        parts.append(
            f"Dense: top-1 {first['dense_top1']:.1%}. {first['hardware']}, torch {first['torch']}, "
            f"timm {first['timm']}; {min(r['date'] for r in mine)[:10]} to "
            f"{max(r['date'] for r in mine)[:10]}, commits "
            f"{', '.join(sorted({r['commit'] for r in mine}))}."
        )
        for share in sorted({r["share"] for r in mine if r["shape"] != "squeezed"}, reverse=True):
            parts += ["", f"### {share:.0%} of the MACs", "", *_table(rows, mine, share)]
    return "\n".join(parts) + "\n"


_ABOUT = (
    "DINOv2 ViT-S/14 with a linear head, pooled without training; clustering is counted in the "
    "MACs. KL is the mean divergence from the dense model (nats) with its 95 % interval over "
    "pictures; the ratio is to the better of ToMe at a constant rate or number, over the same "
    "pictures. Constant rate, and the best of each method's other shapes. Made by "
    "`python -m benchmarks.real table` and `plot`."
)


def reference(rows: Rows, mine: Sequence[Row], share: float) -> Row | None:
    """The better of ToMe's rows at a cost."""
    found = [
        r
        for r in mine
        if r["share"] == share and r["method"] in REFERENCES and r["shape"] in _OF_REFERENCE
    ]
    return min(found, key=lambda r: r["kl"], default=None)


def _table(rows: Rows, mine: Sequence[Row], share: float) -> Iterable[str]:
    yield "| method | schedule | KL | ÷ ToMe | same class | top-1 | MACs | ms | speed-up |"
    yield "|---|---|---|---|---|---|---|---|---|"
    against = reference(rows, mine, share)
    here = [r for r in mine if r["share"] == share or _squeezed_near(r, share)]
    shown: list[Row] = []
    for method in dict.fromkeys(r["method"] for r in here):
        own = [r for r in here if r["method"] == method]
        constant = [r for r in own if r["shape"] == "constant rate"]
        others = sorted((r for r in own if r not in constant), key=lambda r: r["kl"])
        shown += constant + others[:1] + [r for r in others[1:] if r["shape"] == "squeezed"]
    for row in sorted(shown, key=lambda r: r["kl"]):
        yield (
            f"| `{row['method']}` | {row['shape']} | {row['kl']:.3f} ({row['kl_low']:.3f} to "
            f"{row['kl_high']:.3f}) | {_ratio(rows, row, against)} | {row['agreement']:.1%} | "
            f"{row['top1']:.1%} | {row['macs_share']:.1%} | {_time(row)} |"
        )


def _squeezed_near(row: Row, share: float) -> bool:
    """A search stays a little below its bound."""
    return row["shape"] == "squeezed" and 0.95 * share < row["share"] <= share


def _ratio(rows: Rows, row: Row, against: Row | None) -> str:
    if against is None:
        return ""
    own, other = rows.seen(row), rows.seen(against)
    if own is None or other is None:  # another machine's rows: their pictures are not here
        return f"{row['kl'] / against['kl']:.2f}"
    ratio, low, high = ratio_interval(own.divergence, other.divergence)
    return f"{ratio:.2f} ({low:.2f} to {high:.2f})"


def _settings(rows: Sequence[Row]) -> list[tuple[str, int, int]]:
    return sorted({(r["data"], r["image_size"], r["images"]) for r in rows})


def draw(rows: Rows, path: Path, methods: Sequence[str]) -> None:
    """KL against the cost for the leading methods (left) and against the shape (right)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings = _settings(rows.rows)
    figure, axes = plt.subplots(
        len(settings), 2, figsize=(12, 4.5 * len(settings)), squeeze=False, layout="constrained"
    )
    for (data, size, images), (left, right) in zip(settings, axes, strict=True):
        mine = [
            r
            for r in rows.rows
            if (r["data"], r["image_size"], r["images"]) == (data, size, images)
        ]
        for method in methods:
            own = [r for r in mine if r["method"] == method]
            flat = sorted((r["macs_share"], r) for r in own if r["shape"] == "constant rate")
            if flat:
                below = [r["kl"] - r["kl_low"] for _, r in flat]
                above = [r["kl_high"] - r["kl"] for _, r in flat]
                left.errorbar(
                    [share for share, _ in flat],
                    [r["kl"] for _, r in flat],
                    yerr=[below, above],
                    marker="o",
                    capsize=2,
                    label=method,
                )
            shaped = sorted(
                (0.0 if r["shape"] == "constant rate" else float(r["shape"].split()[1]), r["kl"])
                for r in own
                if r["share"] == 0.4 and r["shape"].split()[0] in ("power", "constant")
                if r["shape"] != "constant number"
            )
            if shaped:
                right.plot(*zip(*shaped, strict=True), marker="o", label=method)
        for axis, label in (
            (left, "share of the MACs"),
            (right, "power (< 0: early layers pool more)"),
        ):
            axis.set_yscale("log")
            axis.set_xlabel(label)
            axis.set_ylabel("KL from the dense model (nats)")
            axis.grid(alpha=0.3, which="both")
        left.set_title(f"{data}, {size} px, {images} pictures: constant rate")
        right.set_title("shape of the schedule at 40 % of the MACs")
        if left.has_data():
            left.legend(fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
