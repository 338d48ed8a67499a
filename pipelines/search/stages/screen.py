"""Stage *screen*: evolution over schedules, scored on minival without training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray

from pipelines.console import Bar
from pipelines.search.scorer import Scorer
from pipelines.search.stages.context import StageContext
from pipelines.search.state import ScreenedSchedule
from tokenpool import Schedule
from tune_spaces.evolution import Scored, first_generation, next_generation
from tune_spaces.space import Candidate, ScheduleSpace

_SCHEDULES_PER_TASK = 4


def run_screen(context: StageContext) -> None:
    """Scores schedules, generation by generation, until there are as many as configured."""
    config, state = context.config, context.state
    stage = config.screen
    space = context.space
    wanted = stage.schedules
    with context.screen.progress("schedules scored", wanted) as bar:
        bar.advance(len(state.screened), note="from before" if state.screened else "")
        with scorers(
            context, "screen", stage.actors if len(state.screened) < wanted else 0
        ) as actors:
            while len(state.screened) < wanted:
                candidates = due(
                    space,
                    state.screened,
                    config.seed,
                    wanted,
                    stage.generations,
                    seeds(context, space),
                )
                if not candidates:
                    break  # the space has no more schedules
                _score(context, actors, candidates, bar)
    context.screen.say(f"{len(state.screened)} schedules scored without training")
    context.recorder.add("stage_done", stage="screen")


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


@contextmanager
def scorers(context: StageContext, stage: str, count: int) -> Iterator[list[Any]]:
    """`make_scorers` for as long as the block runs; their time counts as a stage's cost."""
    actors = make_scorers(context, count) if count else []
    share = context.config.screen.gpus_per_actor or 1.0
    try:
        with context.metered(stage, share * len(actors)):
            yield actors
    finally:
        for actor in actors:
            ray.kill(actor)


def make_scorers(context: StageContext, count: int) -> list[Any]:
    """Actors that hold every base there is and the images, at most as many as fit the cluster.

    Raises:
        UserError: not even one fits.
    """
    stage, state = context.config.screen, context.state
    data = context.config.data.model_copy(update={"path": context.config.data.path.resolve()})
    bases = {base.width: base.checkpoint for base in state.bases if base.checkpoint}
    fits = context.fits(1, stage.cpus_per_actor, stage.gpus_per_actor)
    remote = ray.remote(num_cpus=stage.cpus_per_actor, num_gpus=stage.gpus_per_actor)(Scorer)
    device = "cuda" if stage.gpus_per_actor else "cpu"
    return [
        remote.remote(bases, data, batch_size=stage.batch_size, device=device)
        for _ in range(min(count, fits))
    ]


def _score(context: StageContext, actors: list[Any], candidates: list[Candidate], bar: Bar) -> None:
    """Scores candidates on the actors and records them in the order of the candidates."""
    pool = ray.util.ActorPool(actors)

    def submit(actor: Any, task: list[Candidate]) -> Any:
        first = task[0]
        return actor.score.remote(first.width, [tuple(c.schedule) for c in task], first.method)

    tasks = list(_tasks(candidates))
    for task, results in zip(tasks, pool.map(submit, tasks), strict=True):
        rows = [
            (tuple(candidate.schedule), candidate.gmacs, top1, loss)
            for candidate, (top1, loss) in zip(task, results, strict=True)
        ]
        width, method = task[0].arm
        context.recorder.add("screened", width=width, method=method, rows=rows)
        best = max(row[2] for row in rows)
        bar.advance(len(task), note=f"width {width} top-1 up to {best:.1%}")
        context.check()


def _tasks(candidates: list[Candidate]) -> Iterator[list[Candidate]]:
    """Candidates of one width and method together, a few to a task."""
    for arm in sorted({candidate.arm for candidate in candidates}):
        group = [candidate for candidate in candidates if candidate.arm == arm]
        for start in range(0, len(group), _SCHEDULES_PER_TASK):
            yield group[start : start + _SCHEDULES_PER_TASK]
