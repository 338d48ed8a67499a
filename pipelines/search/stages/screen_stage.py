"""Stage *screen*: schedules that the policy asks for, scored on minival without training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from pipelines.search.decide import policy_of
from pipelines.search.race import BLOCK, Racer, images_seen
from pipelines.search.scorer import ImageScores
from pipelines.search.stages.context import StageContext
from pipelines.search.stages.scorer_pool import scorers
from pipelines.search.state import Weights
from pipelines.search.state_records import candidate_row
from tune_spaces.candidate import Untrained
from tune_spaces.evolution import Scored, select
from tune_spaces.policy import FrontPolicy, Score
from tune_spaces.space import Candidate, ScheduleSpace

_SCHEDULES_PER_TASK = 4


def run_screen(context: StageContext) -> None:
    """Scores what the search begins with; where there are to be supernets, all that makes these."""
    score(context, base_policy(context), "base")
    context.recorder.add("stage_done", stage="screen")


def base_policy(context: StageContext) -> FrontPolicy:
    """The policy of a search that scores schedules on the bases' weights."""
    return policy_of(
        context.config,
        context.state,
        context.space,
        "base",
        planned=seeds(context, context.space),
        events=context.events(),
    )


def score(context: StageContext, policy: FrontPolicy, weights: Weights) -> None:
    """Scores schedules as long as the policy asks for nothing else.

    Args:
        context: of the search.
        policy: told of every score.
        weights: whose: the bases' or the supernets'.
    """
    if not isinstance(policy.ask(), Score):
        return
    config, state, recorder = context.config, context.state, context.recorder
    screened = state.rescreened if weights == "supernet" else state.screened
    begun = len(screened)
    with (
        context.screen.progress("schedules scored", begun + policy.num_unscored) as bar,
        scorers(context, "screen", config.screen.actors, weights) as pool,
    ):
        bar.advance(begun, note="from before" if begun else "")
        racer = Racer(
            partial(_evaluate, context, pool),
            pool.ask(lambda actor: actor.num_images.remote()),
            racing=config.screen.racing,
            tolerance=config.screen.racing_tolerance,
        )
        while isinstance(asked := policy.ask(), Score):
            if asked.is_new:
                # On disk before any of it is scored: a killed search goes on with the same ones.
                rows = [candidate_row(candidate) for candidate in asked.candidates]
                recorder.add("generation", weights=weights, rows=rows)
                policy.asked(asked.candidates)
                continue
            scored = racer.score(asked.candidates[:BLOCK], screened)
            recorder.add(
                "screened",
                weights=weights,
                rows=[_row(row) for row in scored],
            )
            policy.scored(scored)
            bar.advance(len(scored), note=f"top-1 up to {max(row.top1 for row in scored):.1%}")
            context.check()
    text = f"{len(screened)} schedules scored without training"
    dropped = sum(not row.whole for row in screened)
    if dropped and "minival" in state.images:
        share = images_seen(screened, state.images["minival"])
        text += f", {dropped} of them dropped early: {1 - share:.0%} of the work saved"
    context.screen.say(text)


def _row(row: Untrained) -> list[Any]:
    """As it stands in the ledger (`state.screened_rows`)."""
    width, schedule, gmacs, method = candidate_row(row.candidate)
    return [width, schedule, gmacs, row.top1, row.loss, method, row.images]


def seeds(context: StageContext, space: ScheduleSpace) -> list[Candidate]:
    """What the plan expects most of."""
    return [space.candidate(c.width, c.schedule, c.method or None) for c in context.state.planned]


def as_scored(screened: Sequence[Untrained]) -> list[Scored]:
    """What was screened, for the evolution: the lower the loss the better.

    It tells apart schedules whose top-1 is equal on a small minival.
    """
    return [Scored(row.candidate, -row.loss) for row in screened]


def best_of(screened: Sequence[Untrained], count: int) -> list[Scored]:
    """The best for their cost; those that were dropped early only where there are no others."""
    complete = select(as_scored([row for row in screened if row.whole]), count)
    dropped = as_scored([row for row in screened if not row.whole])
    return complete + (select(dropped, count - len(complete)) if len(complete) < count else [])


def _evaluate(
    context: StageContext, pool: Any, candidates: Sequence[Candidate], start: int, stop: int
) -> list[ImageScores]:
    """What candidates make of a part of the images, over all actors."""
    tasks = list(_tasks(candidates))

    def submit(actor: Any, task: list[int]) -> Any:
        first = candidates[task[0]]
        schedules = [tuple(candidates[i].schedule) for i in task]
        return actor.image_scores.remote(
            first.width, schedules, first.method, start, stop, context.state.measure
        )

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
