"""How far a search is: what is done, what runs, how good the front is by now."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipelines.results.front import Progress, build_front
from pipelines.results.last_steps import last_step_text, last_steps
from pipelines.results.table import percent, slower_text
from pipelines.search.agreement import agreement_text
from pipelines.search.driver import driver_runs
from pipelines.search.halt import budget_left, read_request
from pipelines.search.model_record import epochs_of
from pipelines.search.state import AgreementState, SearchState
from pipelines.storage.search_files import Search
from tune_spaces.halving import rung_of


def search_status(
    state: SearchState, search: Search, growth: Sequence[Progress] = ()
) -> dict[str, Any]:
    """Where a search stands, as plain JSON types.

    A driver at work holds a lock in its folder; `growth` is its `history`.
    """
    front = build_front(state)
    runs = driver_runs(search)
    models = [*state.bases, *state.trials.values()]
    running = [
        {
            "id": model.model_id,
            "epoch": model.epochs,
            "epochs": epochs_of(state.config, model),
            "top1_minival": model.top1_minival,
        }
        for model in [*models, *state.supernets]
        if model.status == "running" and model.reports
    ]
    return {
        "name": state.name,
        "state": _how(state, runs),
        "ended": state.ended or None,
        "stopping": runs and read_request(search) is not None,
        "stages": dict(state.stages),
        "models": dict(Counter(model.status for model in models)),
        "running": running,
        "last_steps": last_steps(state, search) if runs else [],
        "trials": dict(Counter(trial.status for trial in state.trials.values())),
        "rungs": rung_counts(state),
        "screened": len(state.screened),
        "rescreened": len(state.rescreened),
        "agreement": {by: asdict(found) for by, found in state.agreement.items()},
        "front": len(front.on_front),
        "knee": front.knee.point_id if front.knee else None,
        "hypervolume": front.hypervolume,
        "slower": slower_text(front),
        "growth": [[round(step.device_seconds, 1), round(step.hypervolume, 6)] for step in growth],
        "device_seconds": round(state.device_seconds, 1),
        "stage_device_seconds": {
            stage: round(seconds, 1) for stage, seconds in state.stage_seconds.items()
        },
        "budget": state.budget.model_dump(exclude_none=True),
        "budget_left": _left(state, runs),
        "seconds": round(state.updated - state.created, 1),
        "seconds_since_last_event": round(max(0.0, time.time() - state.updated), 1),
        "config_hash": state.config_hash,
    }


def _how(state: SearchState, runs: bool) -> str:
    if state.complete:
        return "complete"
    if runs:
        return "running"
    return "stopped" if state.ended else "interrupted"


def _left(state: SearchState, runs: bool) -> dict[str, float]:
    """What is left of the budget, as of now or of the last event."""
    found = budget_left(state.budget, state, time.time() if runs else state.updated)
    return {name: round(value, 4) for name, value in found.items()}


def rung_counts(state: SearchState) -> list[dict[str, int]]:
    """Of the finals' rung, how many trials have reached it and were stopped there."""
    if not state.trials:
        return []
    rung = rung_of(state.config.finals.grace_epochs, state.config.finals.train.epochs)
    judged = [t for t in state.trials.values() if not t.is_companion]
    reached = [t for t in judged if t.epochs >= rung]
    stopped = sum(t.status == "stopped" and t.epochs == rung for t in reached)
    return [{"epoch": rung, "reached": len(reached), "stopped": stopped}]


def status_text(status: dict[str, Any]) -> str:
    """The status in a few lines for people."""
    signs = {"done": "✓", "pending": "·"}
    stages = "  ".join(f"{signs[how]} {stage}" for stage, how in status["stages"].items())
    ago = duration(status["seconds_since_last_event"])
    how = {
        "complete": "complete",
        "running": f"running, last event {ago} ago",
        "stopped": f"ended {ago} ago, {status['ended']}: type the same `tokenpool search` command "
        "to go on",
        "interrupted": f"interrupted {ago} ago: type the same `tokenpool search` command to go on",
    }[status["state"]]
    if status["stopping"]:
        how += "; asked to stop"
    working = status["state"] == "running"
    lines = [
        f"{status['name']}: {how}",
        f"  stages: {stages}",
        f"  models: {_counts(status['models'], working) or 'none yet'}; "
        f"{status['screened']} schedules screened"
        + (f", {status['rescreened']} again with supernets" if status["rescreened"] else ""),
    ]
    if status["trials"]:
        lines.append(f"  trials: {_counts(status['trials'], working)}")
        for rung in status["rungs"]:
            lines[-1] += (
                f"; rung: epoch {rung['epoch']}: {rung['reached']} reached, {rung['stopped']} "
                "stopped there"
            )
    lines += [
        f"  {run['id']}: epoch {run['epoch']} of {run['epochs'] or '?'}, "
        f"top-1 on minival {percent(run['top1_minival'])} %"
        for run in status["running"]
    ]
    lines += [f"  {last_step_text(w, duration(w['seconds']))}" for w in status["last_steps"]]
    lines += [
        "  " + agreement_text(AgreementState(**found), by)
        for by, found in status["agreement"].items()
    ]
    knee = f", knee {status['knee']}" if status["knee"] else ""
    lines.append(
        f"  front: {status['front']} models{knee}; hypervolume {status['hypervolume']:.4f} after "
        f"{status['device_seconds']:.0f} device-seconds, {duration(status['seconds'])} in all"
    )
    if status["slower"]:
        lines.append(f"  {status['slower']}")
    spent = ", ".join(f"{s} {seconds:.0f}" for s, seconds in status["stage_device_seconds"].items())
    if spent:
        lines.append(f"  device-seconds: {spent}")
    if len(status["growth"]) > 1:
        lines.append(f"  hypervolume against device-seconds: {sparkline(status['growth'])}")
    if status["budget"]:
        lines.append(f"  budget left: {_left_text(status)}")
    return "\n".join(lines)


def sparkline(growth: Sequence[Sequence[float]], width: int = 40) -> str:
    """How a value grew over an axis from 0 to its last point, in one line: `0 ▁▃▃▆█ 0.71`.

    `growth` has (position, value), by ascending position.
    """
    signs = "▁▂▃▄▅▆▇█"
    end, top = growth[-1][0], max(value for _, value in growth)
    if end <= 0 or top <= 0:
        return ""
    bars = ""
    for column in range(1, width + 1):
        known = [value for position, value in growth if position <= end * column / width + 1e-9]
        bars += signs[min(len(signs) - 1, int(known[-1] / top * len(signs)))] if known else " "
    return f"0 {bars} {top:.4f} at {end:.0f}"


def _counts(counts: dict[str, int], working: bool) -> str:
    order = ("done", "running", "paused", "stopped", "failed", "pending")
    names = {"running": "running" if working else "begun"}
    return ", ".join(
        f"{counts[status]} {names.get(status, status)}" for status in order if status in counts
    )


def _left_text(status: dict[str, Any]) -> str:
    left, budget = status["budget_left"], status["budget"]
    parts = []
    if "device_hours" in left:
        parts.append(f"{left['device_hours']:.3g} of {budget['device_hours']:g} device-hours")
    if "seconds" in left:
        parts.append(f"{duration(left['seconds'])} until the deadline ({budget['deadline']})")
    if "trials" in left:
        parts.append(f"{left['trials']:.0f} of {budget['trials']} trials")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as people say them: `45 s`, `12 min`, `3.4 h`, `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
