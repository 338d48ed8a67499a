"""Stage *base*: a dense model for each width, trained as a Ray Train job."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import ray

from pipelines.config import SearchWidthConfig
from pipelines.errors import UserError
from pipelines.search.job_specs import base_job
from pipelines.search.loaded_base import save_loaded_noted
from pipelines.search.stages.context import StageContext
from pipelines.search.stages.scorer_pool import scorers
from pipelines.search.stages.train_models import train_models

# A base this near to chance has learned nothing that pooling could keep: under twice chance and,
# where the classes are few, under a tenth of the way from chance to all right.
_LEAST_TIMES_CHANCE, _LEAST_OF_THE_WAY = 2.0, 0.1


def run_base(context: StageContext) -> None:
    """Loads or trains what is missing.

    Raises:
        UserError: a base failed, or did not learn.
    """
    config, state = context.config, context.state
    _load(context)
    missing = {w.width: w for w in config.space.widths if state.base(w.width).status != "done"}
    while missing:
        # A width that inherits comes after the one it inherits from.
        ready = [
            width
            for width in missing.values()
            if (wider := config.wider(width)) is None or wider.width not in missing
        ]
        _train(context, ready)
        if any(state.base(width.width).status != "done" for width in ready):
            break
        missing = {k: width for k, width in missing.items() if width not in ready}
    for width in config.space.widths:
        _check_learned(context, width)
    for width in config.space.widths:
        base = state.base(width.width)
        if base.status != "done" or base.top1_minival is None:
            raise UserError(
                f"the base of width {width.width} failed: {base.reason or 'it did not finish'}",
                exit_code=1,
            )
        context.screen.say(
            f"width {width.width}: {base.gmacs:.4f} GMACs, top-1 on minival {base.top1_minival:.2%}"
        )
    context.recorder.add("stage_done", stage="base")


def _train(context: StageContext, widths: list[SearchWidthConfig]) -> None:
    """Trains widths side by side."""
    config, state = context.config, context.state
    jobs = []
    for width in widths:
        wider, source = config.wider(width), None
        if wider is not None:
            source = str(state.base(wider.width).checkpoint)
            context.screen.say(
                f"width {width.width} inherits from width {wider.width}: "
                f"{config.base_epochs(width)} epochs"
            )
        jobs.append(base_job(config, width, state.num_classes, source))
    train_models(
        context,
        "base",
        jobs,
        title="base models, epochs",
        # The search cannot go on without it, so the other widths need not either.
        ends_all=lambda base: not has_learned(base.top1_minival or 0.0, state.num_classes),
    )


def has_learned(top1: float, num_classes: int) -> bool:
    """Whether a model is so far above chance that something could be lost by pooling."""
    chance = 1 / num_classes
    least = min(_LEAST_TIMES_CHANCE * chance, chance + _LEAST_OF_THE_WAY * (1 - chance))
    return top1 >= least


def _check_learned(context: StageContext, width: SearchWidthConfig) -> None:
    base, classes = context.state.base(width.width), context.state.num_classes
    top1 = base.top1_minival
    if base.status != "done" or top1 is None or has_learned(top1, classes):
        return
    remedy = (
        f"{width.checkpoint} is not for this data, or its classes stand in another order "
        "(docs/weights.md)"
        if width.checkpoint
        else "change base.train.lr or base.train.epochs, and give the search a new name"
    )
    raise UserError(
        f"the base of width {width.width} does not learn (top-1 on minival {top1:.1%}, chance "
        f"{1 / classes:.1%}): {remedy}",
        exit_code=1,
    )


def _load(context: StageContext) -> None:
    """Takes the checkpoints that the config names as bases, where the bases are trained."""
    config, state = context.config, context.state
    cpus = config.base.workers.cpus_per_worker
    due = [w for w in config.space.widths if w.checkpoint and state.base(w.width).status != "done"]
    if not due:
        return
    save: Any = save_loaded_noted  # Ray's types know of functions without arguments only
    remote = ray.remote(num_cpus=cpus)(save)
    with (
        context.screen.progress("checkpoints loaded", len(due)) as bar,
        scorers(context, "base", 1) as pool,
    ):
        for width in due:
            job = base_job(config, width, state.num_classes)
            try:
                path, notes = ray.get(remote.remote(job, _absolute(str(width.checkpoint))))
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                raise
            for note in notes:
                context.screen.say(note, style="yellow")
            top1 = pool.ask(partial(_on_minival, path))["top1"]
            context.recorder.add("base_done", width=width.width, checkpoint=path, top1_minival=top1)
            bar.advance(note=f"width {width.width} top-1 {top1:.1%}")
            context.check()


def _on_minival(path: str, actor: Any) -> Any:
    return actor.evaluate_saved.remote(path, "minival")


def _absolute(source: str) -> str:
    """A path for workers that run elsewhere; a timm name as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else source
