"""Stage *screen*: evolution over schedules, scored on minival without training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

from pipelines.search.race import BLOCK, Racer, images_seen
from pipelines.search.scorer import ImageScores
from pipelines.search.stages.context import StageContext
from pipelines.search.stages.scorer_pool import scorers
from pipelines.search.state import ScreenedSchedule, Weights
from tokenpool import Schedule
from tune_spaces.evolution import Scored, first_generation, next_generation, select
from tune_spaces.space import Candidate, ScheduleSpace

_SCHEDULES_PER_TASK = 4


def run_screen(context: StageContext) -> None:
    """Scores schedules, generation by generation, until there are as many as configured."""
    stage = context.config.screen
    screen_schedules(
        context, "base", stage.schedules, stage.generations, seeds(context, context.space)
    )
    context.recorder.add("stage_done", stage="screen")


def screen_schedules(
    context: StageContext,
    weights: Weights,
    wanted: int,
    generations: int,
    first: Sequence[Candidate],
) -> None:
    """Scores schedules on the bases' or the supernets' weights, by evolution.

    Args:
        context: of the search.
        weights: whose.
        wanted: how many.
        generations: rounds it takes; each learns from those before.
        first: what the first one begins with.
    """
    config, state = context.config, context.state
    screened = state.rescreened if weights == "supernet" else state.screened
    space = context.space
    with context.screen.progress("schedules scored", wanted) as bar:
        bar.advance(len(screened), note="from before" if screened else "")
        actors_wanted = config.screen.actors if len(screened) < wanted else 0
        with scorers(context, "screen", actors_wanted, weights) as pool:
            racer = None
            if pool:
                racer = Racer(
                    partial(_evaluate, context, pool),
                    pool.ask(lambda actor: actor.num_images.remote()),
                    racing=config.screen.racing,
                    tolerance=config.screen.racing_tolerance,
                )
            while racer is not None and len(screened) < wanted:
                candidates = due(space, screened, config.seed, wanted, generations, first)
                if not candidates:
                    break  # the space has no more schedules
                rows = racer.score(candidates[:BLOCK], screened)
                context.recorder.add(
                    "screened",
                    weights=weights,
                    rows=[
                        (r.width, r.schedule, r.gmacs, r.top1, r.loss, r.method, r.images)
                        for r in rows
                    ],
                )
                bar.advance(len(rows), note=f"top-1 up to {max(row.top1 for row in rows):.1%}")
                context.check()
    text = f"{len(screened)} schedules scored without training"
    dropped = sum(row.images is not None for row in screened)
    if dropped and "minival" in state.images:
        share = images_seen(screened, state.images["minival"])
        text += f", {dropped} of them dropped early: {1 - share:.0%} of the work saved"
    context.screen.say(text)


def due(
    space: ScheduleSpace,
    screened: Sequence[ScreenedSchedule],
    seed: int,
    wanted: int,
    generations: int,
    planned: Sequence[Candidate] = (),
) -> list[Candidate]:
    """What is to be scored next: the rest of the generation that was begun, or a new one.

    A generation is a function of the seed and of the generations before it. So a search killed
    in the midst of one goes on with the same candidates as if nothing had happened.
    """
    size = -(-wanted // generations)
    begun = len(screened) - len(screened) % size
    count = min(size, wanted - begun)
    rng = np.random.default_rng([seed, begun])
    before = as_scored(screened[:begun])
    generation = (
        next_generation(space, rng, before, count)
        if before
        else first_generation(space, rng, count, planned)
    )
    known = {(row.width, tuple(row.schedule), row.method) for row in screened}
    rest = [candidate for candidate in generation if candidate.key not in known]
    if rest or not screened:
        return rest
    # A small space gave fewer than a whole generation: the neighbours of all that is known.
    missing = wanted - len(screened)
    return next_generation(space, rng, as_scored(screened), missing, oversample=1)


def seeds(context: StageContext, space: ScheduleSpace) -> list[Candidate]:
    """What the plan expects most of."""
    return [
        space.candidate(row.width, row.schedule, row.method or None)
        for row in context.state.planned
    ]


def as_scored(screened: Sequence[ScreenedSchedule]) -> list[Scored]:
    """What was screened, for the evolution: the lower the cross-entropy the better.

    Cross-entropy tells apart schedules whose top-1 is equal on a small minival.
    """
    return [
        Scored(Candidate(row.width, Schedule(row.schedule), row.gmacs, row.method), -row.loss)
        for row in screened
    ]


def best_of(screened: Sequence[ScreenedSchedule], count: int) -> list[Scored]:
    """The best for their cost; those that were dropped early only where there are no others."""
    complete = select(as_scored([row for row in screened if row.images is None]), count)
    dropped = as_scored([row for row in screened if row.images is not None])
    return complete + (select(dropped, count - len(complete)) if len(complete) < count else [])


def _evaluate(
    context: StageContext, pool: Any, candidates: Sequence[Candidate], start: int, stop: int
) -> list[ImageScores]:
    """What candidates make of a part of the images, over all actors."""
    tasks = list(_tasks(candidates))

    def submit(actor: Any, task: list[int]) -> Any:
        first = candidates[task[0]]
        schedules = [tuple(candidates[i].schedule) for i in task]
        return actor.image_scores.remote(first.width, schedules, first.method, start, stop)

    found: list[ImageScores] = []
    for scores in pool.map(submit, tasks):
        found += scores
        context.check()
    places = [index for task in tasks for index in task]
    return [scores for _, scores in sorted(zip(places, found, strict=True), key=itemgetter(0))]


def _tasks(candidates: Sequence[Candidate]) -> Iterator[list[int]]:
    """Indices of candidates of one width and method together, a few to a task."""
    for arm in sorted({candidate.arm for candidate in candidates}):
        group = [i for i, candidate in enumerate(candidates) if candidate.arm == arm]
        for start in range(0, len(group), _SCHEDULES_PER_TASK):
            yield group[start : start + _SCHEDULES_PER_TASK]
