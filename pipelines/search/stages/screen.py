"""Stage *screen*: evolution over schedules, scored on minival without training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import ray

from pipelines.console import Bar
from pipelines.search.plan import make_space
from pipelines.search.scorer import Scorer
from pipelines.search.stages.context import StageContext
from pipelines.search.state import SearchState
from tokenpool import Schedule
from tune_spaces.evolution import Scored, first_generation, next_generation
from tune_spaces.space import Candidate

_SCHEDULES_PER_TASK = 4


def run_screen(context: StageContext) -> None:
    """Scores schedules, generation by generation, until there are as many as configured."""
    config, state = context.config, context.state
    stage = config.screen
    space = make_space(config, state.num_classes)
    wanted = stage.schedules
    per_generation = -(-wanted // stage.generations)
    with context.screen.progress("schedules scored", wanted) as bar:
        bar.advance(len(state.screened), note="from before" if state.screened else "")
        actors = make_scorers(context, stage.actors) if len(state.screened) < wanted else []
        while len(state.screened) < wanted:
            # A generation is a function of the seed and of what was scored before it.
            rng = np.random.default_rng([config.seed, len(state.screened)])
            count = min(per_generation, wanted - len(state.screened))
            scored = as_scored(state)
            candidates = (
                next_generation(space, rng, scored, count)
                if scored
                else first_generation(space, rng, count)
            )
            if not candidates:
                break  # the space has no more schedules
            _score(context, actors, candidates, bar)
        for actor in actors:
            ray.kill(actor)
    context.screen.say(f"{len(state.screened)} schedules scored without training")
    context.recorder.add("stage_done", stage="screen")


def as_scored(state: SearchState) -> list[Scored]:
    """What was screened, for the evolution: the lower the cross-entropy the better.

    Cross-entropy tells apart schedules whose top-1 is equal on a small minival.
    """
    return [
        Scored(Candidate(row.width, Schedule(row.schedule), row.gmacs), -row.loss)
        for row in state.screened
    ]


def make_scorers(context: StageContext, count: int) -> list[Any]:
    """Actors that hold every base and the images, at most as many as fit the cluster.

    Raises:
        UserError: not even one fits.
    """
    stage, state = context.config.screen, context.state
    data = context.config.data.model_copy(update={"path": context.config.data.path.resolve()})
    bases = {base.width: str(base.checkpoint) for base in state.bases}
    fits = context.fits(1, stage.cpus_per_actor, stage.gpus_per_actor)
    remote = ray.remote(num_cpus=stage.cpus_per_actor, num_gpus=stage.gpus_per_actor)(Scorer)
    device = "cuda" if stage.gpus_per_actor else "cpu"
    return [
        remote.remote(bases, data, batch_size=stage.batch_size, device=device)
        for _ in range(min(count, fits))
    ]


def _score(context: StageContext, actors: list[Any], candidates: list[Candidate], bar: Bar) -> None:
    """Scores candidates on the actors and records them in the order of the candidates."""
    method = context.config.space.method
    pool = ray.util.ActorPool(actors)

    def submit(actor: Any, task: list[Candidate]) -> Any:
        return actor.score.remote(task[0].width, [tuple(c.schedule) for c in task], method)

    tasks = list(_tasks(candidates))
    for task, results in zip(tasks, pool.map(submit, tasks), strict=True):
        rows = [
            (tuple(candidate.schedule), candidate.gmacs, top1, loss)
            for candidate, (top1, loss) in zip(task, results, strict=True)
        ]
        context.recorder.add("screened", width=task[0].width, rows=rows)
        best = max(row[2] for row in rows)
        bar.advance(len(task), note=f"width {task[0].width} top-1 up to {best:.1%}")


def _tasks(candidates: list[Candidate]) -> Iterator[list[Candidate]]:
    """Candidates of one width together, a few to a task."""
    for width in sorted({candidate.width for candidate in candidates}):
        group = [candidate for candidate in candidates if candidate.width == width]
        for start in range(0, len(group), _SCHEDULES_PER_TASK):
            yield group[start : start + _SCHEDULES_PER_TASK]
