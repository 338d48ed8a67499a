"""Stage *calibrate*: per layer, the damage of pooling k_in → k_out, on every width's model."""

from __future__ import annotations

from functools import partial
from typing import Any

from pipelines.search.calibration import probe_counts, probes
from pipelines.search.stages.context import StageContext
from pipelines.search.stages.scorer_pool import scorers

_PROBES_PER_TASK = 8


def run_calibrate(context: StageContext) -> None:
    """Measures the widths that are not measured yet; records each when it is complete."""
    config, state = context.config, context.state
    stage = config.calibrate
    if not stage.enabled:
        context.screen.say("switched off (calibrate.enabled)")
        context.recorder.add("stage_done", stage="calibrate")
        return
    space = context.space
    counts = probe_counts(space, stage.counts)
    missing = [arm for arm in space.cost_ranges if arm not in state.calibrations]
    schedules = probes(space.depth, counts)
    with context.screen.progress("probes", len(schedules) * len(missing)) as bar:
        tasks = [
            schedules[start : start + _PROBES_PER_TASK]
            for start in range(0, len(schedules), _PROBES_PER_TASK)
        ]
        with scorers(context, "calibrate", config.screen.actors if missing else 0) as pool:
            for width, method in missing:
                submit = partial(_submit, width, method, stage.images)
                rows: list[tuple[tuple[int, ...], float]] = []
                for task, found in zip(tasks, pool.map(submit, tasks), strict=True):
                    rows += zip(task, found, strict=True)
                    bar.advance(len(task), note=f"width {width} {method}")
                    context.check()
                context.recorder.add(
                    "calibrated", width=width, method=method, counts=counts, rows=rows
                )
    context.screen.say(
        f"{len(schedules)} probes per width and method, at {', '.join(map(str, counts))} tokens"
    )
    context.recorder.add("stage_done", stage="calibrate")


def _submit(
    width: int, method: str, images: int, actor: Any, schedules: list[tuple[int, ...]]
) -> Any:
    return actor.divergence.remote(width, schedules, method, images)
