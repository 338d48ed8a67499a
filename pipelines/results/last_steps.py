"""What the workers of a search do right now, and how long ago they did their last steps."""

from __future__ import annotations

import time
from typing import Any

from pipelines.search.state import SearchState
from pipelines.storage.search_files import Search
from pipelines.trials.last_signs import read_last_signs


def last_steps(state: SearchState, search: Search) -> list[dict[str, Any]]:
    """Of each job that a driver is at work on, the worker that is least far, as plain JSON."""
    over = {model.job_id for model in state.models.values() if model.status not in _AT_WORK}
    found = []
    for folder in sorted(search.jobs.glob("*/")):
        # What an earlier driver's workers left behind says nothing of this one's.
        signs = [s for s in read_last_signs(folder) if s.time >= state.began]
        if signs and folder.name not in over:
            last = min(signs, key=lambda s: (-1 if s.step is None else s.step, s.time))
            found.append(
                {
                    "job": folder.name,
                    "rank": last.rank,
                    "host": last.host,
                    "step": last.step,
                    "doing": last.doing,
                    "seconds": round(max(0.0, time.time() - last.time), 1),
                }
            )
    return found


_AT_WORK = ("pending", "running")


def last_step_text(found: dict[str, Any], ago: str) -> str:
    """One of `last_steps` for people."""
    did = "started" if found["step"] is None else f"last step {found['step']}"
    who = f"rank {found['rank']} on {found['host']}"
    return f"{found['job']}: {did} {ago} ago ({who}, {found['doing']})"
