"""Our search among the contenders: calibrate, plan, screen, finals with Pareto-aware halving.

The modules are those of `tokenpool search`; what its Ray actors and trials compute is computed
here in one process, in the same order, and everything that runs on the device is charged.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.search.bench.world import Step, World
from pipelines.search.calibrate import damage_table, plan, probe_counts, probes
from pipelines.search.stages.screen import as_scored, due
from pipelines.search.state import ScreenedSchedule
from tune_spaces.evolution import Scored, select
from tune_spaces.halving import Entry, HalvingRule
from tune_spaces.scheduler import geometric_rungs
from tune_spaces.searcher import FrontSearcher
from tune_spaces.space import Candidate


def ours(world: World, seed: int) -> Iterator[Step]:
    """Inference first, then as many finals as are asked for, the most telling first."""
    planned: list[Candidate] = []
    for width in world.space.widths:
        yield from _calibrated(world, width, planned)
    screened: list[ScreenedSchedule] = []
    yield from _screened(world, seed, planned, screened)
    yield from _finals(world, seed, screened)


def _calibrated(world: World, width: int, planned: list[Candidate]) -> Iterator[Step]:
    """Measures what pooling does to one width, and adds what is planned from it."""
    config, space = world.config.ours, world.space
    counts = probe_counts(space, config.calibrate_counts)
    divergence: dict[tuple[int, ...], float] = {}
    for schedule in probes(space.depth, counts):
        divergence[schedule], seconds = world.divergence(width, schedule)
        yield Step(seconds, "calibrate")
    found = plan(
        space,
        world.specs[width],
        world.config.method,
        damage_table(space.depth, counts, divergence),
        seeds=-(-config.planned // len(space.widths)),
        bins=config.bins,
    )
    planned += [candidate for candidate, _ in found]


def _screened(
    world: World, seed: int, planned: list[Candidate], screened: list[ScreenedSchedule]
) -> Iterator[Step]:
    config = world.config.ours
    while len(screened) < config.schedules:
        batch = due(world.space, screened, seed, config.schedules, config.generations, planned)
        if not batch:
            return
        for candidate in batch:
            width, schedule = candidate.width, tuple(candidate.schedule)
            top1, loss, seconds = world.score(width, schedule)
            screened.append(
                ScreenedSchedule(
                    width, schedule, candidate.gmacs, top1, loss, method=candidate.method
                )
            )
            yield Step(seconds, "screen")


def _finals(world: World, seed: int, screened: list[ScreenedSchedule]) -> Iterator[Step]:
    """Trials in the searcher's order, each judged at the rungs against the front at its cost."""
    config = world.config
    pool = _pool(world, screened)
    bases = [
        Scored(world.space.candidate(width, world.space.dense()), 0.0)
        for width in world.space.widths
    ]
    searcher = FrontSearcher(
        [
            {"candidate": number, "gmacs": entry.candidate.gmacs, "expected": entry.quality}
            for number, entry in enumerate([*pool, *bases])
        ],
        costs=["gmacs"],
        predicted="expected",
    )
    for number, width in enumerate(world.space.widths):
        searcher.mark(f"base-w{width}", len(pool) + number)
    rule = HalvingRule(keep=1 / config.halving.reduction_factor, noise=(config.ours.noise_margin,))
    last = config.finetune.epochs
    milestones = geometric_rungs(config.halving.grace_epochs, last, config.halving.reduction_factor)
    rungs: dict[int, dict[str, Entry]] = {rung: {} for rung in milestones}
    for number in range(len(pool)):
        trial_id = f"t{number:03d}"
        suggested = searcher.suggest(trial_id)
        assert isinstance(suggested, dict)
        entry = pool[suggested["candidate"]]
        run = world.finetune(entry.candidate, seed)
        for epoch in [*milestones, last]:
            step = run.run_to(epoch)
            yield step
            assert step.point is not None
            if epoch == last:
                break
            rung = rungs[epoch]
            rung[trial_id] = Entry((step.point.gmacs,), (step.point.top1,))
            verdict = rule.judge(trial_id, rung)
            rung[trial_id] = Entry((step.point.gmacs,), (step.point.top1,), verdict.kept)
            if not verdict.kept:
                break


def _pool(world: World, screened: list[ScreenedSchedule]) -> list[Scored]:
    """An equal share of each width, as the stage *finals* chooses."""
    widths = sorted({row.width for row in screened})
    dense = {width: world.base_point(width).gmacs for width in widths}
    chosen: list[Scored] = []
    for index, width in enumerate(widths):
        trials = world.config.ours.trials
        share = trials // len(widths) + (index < trials % len(widths))
        own = [
            entry
            for entry in as_scored(screened)
            if entry.candidate.width == width and entry.candidate.gmacs < dense[width]
        ]
        chosen += select(own, share)
    return chosen
