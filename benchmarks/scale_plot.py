"""The plot of benchmarks/scale_simulation.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Work per decision, memory, and GPU time in use, against the number of trials."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    work, memory, use = figure.subplots(1, 3)
    trials = [row["trials"] for row in rows]
    for key, label, style in (
        ("judge", "after a report at the rung or the end", "o-"),
        ("choose", "what to start next", "s-"),
    ):
        (line,) = work.plot(trials, [row[key]["median_ms"] for row in rows], style, label=label)
        work.plot(trials, [row[key]["p99_ms"] for row in rows], ":", color=line.get_color())
    work.set(yscale="log", ylabel="ms of processor time", title="Work per decision")
    work.axhline(100, color="0.8", linewidth=1)
    work.legend(fontsize=8, title="dotted: 99th percentile", title_fontsize=7)
    memory.plot(trials, [row["rss_mb"] for row in rows], "o-")
    memory.set(ylabel="MB", title="Memory of the process")
    use.plot(trials, [100 * row["in_use"] for row in rows], "o-", label="in use")
    use.plot(trials, [100 * row["computing"] for row in rows], "s-", label="computing")
    use.plot(trials, [100 * row["driver_busy"] for row in rows], "^--", label="driver busy")
    use.set(ylabel="% of the time", ylim=(0, 102), title="GPUs and driver")
    use.legend(fontsize=8)
    for axes in (work, memory, use):
        axes.set(xlabel="trainings begun", xlim=(0, None))
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
