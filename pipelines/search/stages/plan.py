"""Stage *plan*: from what was calibrated, the schedules that screening starts with."""

from __future__ import annotations

from pipelines.search.calibrate import damage_table, plan
from pipelines.search.plan import make_space, vit_spec
from pipelines.search.stages.context import StageContext


def run_plan(context: StageContext) -> None:
    """Plans every width, each over its own range of cost; takes seconds and no cluster."""
    config, state = context.config, context.state
    rows: list[tuple[int, list[int], float, float]] = []
    space = make_space(config, state.num_classes)
    share = -(-config.plan.seeds // len(space.widths))
    for width in config.space.widths:
        calibration = state.calibrations.get(width.width)
        if calibration is None or width.width not in space.widths:
            continue
        found = plan(
            space,
            vit_spec(config, width, state.num_classes),
            config.space.method,
            damage_table(space.depth, calibration.counts, calibration.divergence),
            seeds=share,
            bins=config.plan.bins,
        )
        rows += [
            (width.width, list(candidate.schedule), candidate.gmacs, damage)
            for candidate, damage in found
        ]
        if found:
            context.screen.say(
                f"width {width.width}: {len(found)} schedules from {found[0][0].gmacs:.4f} to "
                f"{found[-1][0].gmacs:.4f} GMACs"
            )
    if not rows:
        context.screen.say("nothing planned: screening starts at random schedules")
    context.recorder.add("planned", rows=rows)
    context.recorder.add("stage_done", stage="plan")
