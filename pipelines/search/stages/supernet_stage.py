"""Stages *supernet* and *rescreen*: weights for all schedules, and screening again with them."""

from __future__ import annotations

from pipelines.search.decide import policy_of
from pipelines.search.job_specs import supernet_job
from pipelines.search.stages.context import StageContext
from pipelines.search.stages.screen_stage import best_of, score
from pipelines.search.stages.train_models import train_models
from pipelines.search.state import SearchState
from tune_spaces.policy import FrontPolicy
from tune_spaces.space import Candidate


def run_supernet(context: StageContext) -> None:
    """Trains what is missing, from the bases; a width whose supernet fails goes on without one."""
    config, state = context.config, context.state
    stage = config.supernet
    if not stage.enabled or stage.train is None:
        context.screen.say("switched off (supernet.enabled)")
        context.recorder.add("stage_done", stage="supernet")
        return
    widths = [w for w in config.space.widths if w.width in context.space.widths]
    missing = [w for w in widths if state.supernet(w.width).status != "done"]
    if missing:
        jobs = [
            supernet_job(
                config,
                width,
                stage.train,
                near_front(state, width.width, stage.near),
                state.weights(width.width, "base"),
                state.num_classes,
            )
            for width in missing
        ]
        train_models(context, "supernet", jobs, title="supernets, epochs")
    for width in widths:
        context.screen.say(_outcome(state, width.width))
    context.recorder.add("stage_done", stage="supernet")


def run_rescreen(context: StageContext) -> None:
    """Screens again, beginning with what was best on the bases' weights."""
    state = context.state
    if not any(supernet.status == "done" for supernet in state.supernets):
        context.screen.say("nothing to do: there is no supernet")
    else:
        score(context, supernet_policy(context), "supernet")
    context.recorder.add("stage_done", stage="rescreen")


def supernet_policy(context: StageContext) -> FrontPolicy:
    """The policy of a search that scores schedules on the supernets' weights."""
    config, space = context.config, context.space
    size = -(-config.supernet.schedules // config.supernet.generations)
    share = -(-size // len(space.widths))
    return policy_of(
        config,
        context.state,
        space,
        "supernet",
        planned=[c for width in space.widths for c in near_front(context.state, width, share)],
        events=context.events(),
    )


def near_front(state: SearchState, width: int, count: int) -> list[Candidate]:
    """The best of a width's schedules, by screening on its base's weights."""
    own = [row for row in state.screened if row.candidate.width == width]
    return [entry.candidate for entry in best_of(own, count)]


def _outcome(state: SearchState, width: int) -> str:
    supernet, base = state.supernet(width), state.base(width)
    if supernet.status != "done" or supernet.top1_minival is None or base.top1_minival is None:
        return (
            f"width {width}: no supernet ({supernet.reason or 'it did not finish'}); its finals "
            "start from the base"
        )
    pooled = supernet.reports[-1].top1_minival_pooled if supernet.reports else None
    text = (
        f"width {width}: dense {supernet.top1_minival:.2%} top-1 on minival (its base "
        f"{base.top1_minival:.2%})"
    )
    return text if pooled is None else f"{text}, {pooled:.2%} in the mean of three near the front"
