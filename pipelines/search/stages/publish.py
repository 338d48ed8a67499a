"""Stage *publish*: validation top-1 of the bases and the front, computed once."""

from __future__ import annotations

import ray

from pipelines.search.stages.context import StageContext
from pipelines.search.stages.screen import make_scorers
from pipelines.track.front import build_front

_VALIDATION = "val"


def run_publish(context: StageContext) -> None:
    """Evaluates what is on the front, and every base, on the validation split."""
    state = context.state
    todo: list[tuple[dict[str, object], str]] = [
        ({"width": base.width}, str(base.checkpoint))
        for base in state.bases
        if base.top1_val is None
    ]
    todo += [
        ({"trial_id": point.point_id}, str(point.checkpoint))
        for point in build_front(state).on_front
        if point.kind == "final" and point.top1_val is None
    ]
    if todo:
        with context.screen.progress("validated", len(todo)) as bar:
            (actor,) = make_scorers(context, 1)
            for who, checkpoint in todo:
                scores = ray.get(actor.evaluate_saved.remote(checkpoint, _VALIDATION))
                context.recorder.add("published", top1_val=scores["top1"], **who)
                bar.advance(note=f"top-1 {scores['top1']:.1%}")
            ray.kill(actor)
    context.recorder.add("stage_done", stage="publish")
