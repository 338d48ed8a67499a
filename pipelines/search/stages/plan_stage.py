"""Stage *plan*: from what was calibrated, the schedules that screening starts with."""

from __future__ import annotations

from pipelines.search.calibration import damage_table, plan
from pipelines.search.search_space import vit_spec
from pipelines.search.stages.context import StageContext


def run_plan(context: StageContext) -> None:
    """Plans every width and method, each over its own range of cost; needs no cluster."""
    config, state = context.config, context.state
    rows: list[tuple[int, list[int], float, float, str]] = []
    space = context.space
    share = -(-config.plan.seeds // len(space.cost_ranges))
    widths = {width.width: width for width in config.space.widths}
    for width, method in space.cost_ranges:
        calibration = state.calibrations.get((width, method))
        if calibration is None:
            continue
        found = plan(
            space,
            vit_spec(config, widths[width], state.num_classes),
            method,
            damage_table(space.depth, calibration.counts, calibration.divergence),
            seeds=share,
            bins=config.plan.bins,
        )
        rows += [
            (width, list(candidate.schedule), candidate.gmacs, damage, method)
            for candidate, damage in found
        ]
        if found:
            context.screen.say(
                f"width {width} {method}: {len(found)} schedules from {found[0][0].gmacs:.4f} to "
                f"{found[-1][0].gmacs:.4f} GMACs"
            )
    if not rows:
        context.screen.say("nothing planned: screening starts at random schedules")
    context.recorder.add_all([("planned", {"rows": rows}), ("stage_done", {"stage": "plan"})])
