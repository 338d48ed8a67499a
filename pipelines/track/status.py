"""How far a search is: what is done, what runs, how good the front is by now."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from pipelines.search.state import SearchState
from pipelines.track.front import build_front
from pipelines.track.table import percent
from pipelines.track.upkeep import driver_runs


def search_status(state: SearchState, directory: Path) -> dict[str, Any]:
    """Where a search stands, as plain JSON types.

    Args:
        state: The search.
        directory: Its folder; a driver at work holds a lock there.
    """
    front = build_front(state)
    runs = driver_runs(directory)
    epochs = state.config.get("finals", {}).get("train", {}).get("epochs")
    models = {f"dense-{base.width}": base for base in state.bases} | dict(state.trials)
    running = [
        {
            "id": name,
            "epoch": int(model.reports[-1]["epoch"]),
            "epochs": epochs if name in state.trials else _base_epochs(state),
            "top1_minival": model.top1_minival,
        }
        for name, model in models.items()
        if model.status == "running" and model.reports
    ]
    return {
        "name": state.name,
        "state": "complete" if state.complete else "running" if runs else "interrupted",
        "stages": dict(state.stages),
        "models": dict(Counter(model.status for model in models.values())),
        "running": running,
        "screened": len(state.screened),
        "front": len(front.on_front),
        "knee": front.knee.point_id if front.knee else None,
        "hypervolume": front.hypervolume,
        "device_seconds": round(state.device_seconds, 1),
        "seconds": round(state.updated - state.created, 1),
        "seconds_since_last_event": round(max(0.0, time.time() - state.updated), 1),
        "config_hash": state.config_hash,
    }


def status_text(status: dict[str, Any]) -> str:
    """The status in a few lines for people."""
    signs = {"done": "✓", "pending": "·"}
    stages = "  ".join(f"{signs[how]} {stage}" for stage, how in status["stages"].items())
    how = {
        "complete": "complete",
        "running": f"running, last event {duration(status['seconds_since_last_event'])} ago",
        "interrupted": f"interrupted {duration(status['seconds_since_last_event'])} ago: type the "
        "same `tokenpool search` command to go on",
    }[status["state"]]
    order = ("done", "running", "stopped", "failed", "pending")
    counts = ", ".join(f"{status['models'][s]} {s}" for s in order if s in status["models"])
    lines = [
        f"{status['name']}: {how}",
        f"  stages: {stages}",
        f"  models: {counts or 'none yet'}; {status['screened']} schedules screened",
    ]
    lines += [
        f"  {run['id']}: epoch {run['epoch']} of {run['epochs'] or '?'}, "
        f"top-1 on minival {percent(run['top1_minival'])} %"
        for run in status["running"]
    ]
    knee = f", knee {status['knee']}" if status["knee"] else ""
    lines.append(
        f"  front: {status['front']} models{knee}; hypervolume {status['hypervolume']:.4f} after "
        f"{status['device_seconds']:.0f} device-seconds, {duration(status['seconds'])} in all"
    )
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds as people say them: `45 s`, `12 min`, `3.4 h`, `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def _base_epochs(state: SearchState) -> int | None:
    epochs: int | None = state.config.get("base", {}).get("train", {}).get("epochs")
    return epochs
