"""Stage *publish*: validation top-1 of the bases and the front, once; latency of what is done."""

from __future__ import annotations

from functools import partial
from typing import Any

import ray

from pipelines.search.latency import measure_latency
from pipelines.search.stages.context import StageContext
from pipelines.search.stages.scorer_pool import scorers
from pipelines.search.stages.timed import timed_task
from pipelines.search.standing import cheapest_first, front_ids, model_groups

_VALIDATION = "val"


def run_publish(context: StageContext) -> None:
    """Publishes what there is, which is all there will be."""
    publish_done(context)
    context.recorder.add("stage_done", stage="publish")


def publish_done(context: StageContext) -> None:
    """Validates the front, every base and every baseline; times every model that is done."""
    _validate(context)
    _time(context)


def _validate(context: StageContext) -> None:
    best = front_ids(context.state)
    todo = [
        (model.ledger_key, str(model.checkpoint))
        for group in cheapest_first(model_groups(context.state))
        for model in group
        if (group[0].model_id in best or group[0].kind != "final")
        and model.is_finished
        and model.top1_val is None
    ]
    if not todo:
        return
    with (
        context.screen.progress("validated", len(todo)) as bar,
        scorers(context, "publish", 1) as pool,
    ):
        for who, checkpoint in todo:
            scores = pool.ask(partial(_validated, checkpoint))
            context.recorder.add("published", top1_val=scores["top1"], **who)
            bar.advance(note=f"top-1 {scores['top1']:.1%}")
            context.check()


def _validated(checkpoint: str, actor: Any) -> Any:
    return actor.evaluate_saved.remote(checkpoint, _VALIDATION)


def _time(context: StageContext) -> None:
    """One model after the other, as nothing else runs by now."""
    wanted = context.config.publish
    todo = [
        (model.ledger_key, str(model.checkpoint))
        for group in cheapest_first(model_groups(context.state))
        if not any(model.latency_ms for model in group)
        for model in [model for model in group if model.is_finished][:1]
    ]
    if not todo:
        return
    remote, device, threads = timed_task(context, measure_latency)
    compiled = device == "cuda" if wanted.compile is None else wanted.compile
    with (
        context.screen.progress("timed", len(todo)) as bar,
        context.metered("publish", context.config.screen.gpus_per_actor or 1.0),
    ):
        for who, checkpoint in todo:
            latency = ray.get(
                remote.remote(
                    checkpoint,
                    device,
                    wanted.latency_batches,
                    num_threads=threads,
                    compiled=compiled,
                )
            )
            context.recorder.add(
                "measured", latency_ms=latency, device=device, compiled=compiled, **who
            )
            bar.advance(note=", ".join(f"batch {b}: {ms:.3g} ms" for b, ms in latency.items()))
            context.check()
