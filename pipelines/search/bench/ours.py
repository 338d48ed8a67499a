"""Our search among the contenders: calibrate, plan, screen, finals with Pareto-aware halving.

The modules are those of `tokenpool search`; what its Ray actors and trials compute is computed
here in one process, and everything that runs on the device is charged. It goes in rounds, and
trains in steps (`finals`), where `tokenpool search` screens everything and then trains.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipelines.search.bench.finals import Finals
from pipelines.search.bench.world import Step, World
from pipelines.search.calibrate import damage_table, plan, probe_counts, probes
from pipelines.search.state import ScreenedSchedule
from tune_spaces.evolution import first_generation, next_generation
from tune_spaces.space import Candidate


def ours(world: World, seed: int) -> Iterator[Step]:
    """Calibrate and plan, then rounds of screening and finals, each larger than the one before."""
    planned: list[Candidate] = []
    for width in world.space.widths:
        yield from _calibrated(world, width, planned)
    screened: list[ScreenedSchedule] = []
    finals = Finals(world, seed)
    rounds, margin = world.config.ours.rounds, world.config.ours.noise_margin
    for schedules, trials in rounds:
        yield from _screened(world, seed, planned, screened, schedules, finals)
        yield from finals.run(screened, trials, margin)
    yield from finals.run(screened, rounds[-1][1], 0.0)


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
    world: World,
    seed: int,
    planned: list[Candidate],
    screened: list[ScreenedSchedule],
    wanted: int,
    finals: Finals,
) -> Iterator[Step]:
    """One more generation, up to `wanted` schedules in all, bred by what training is to give."""
    if not screened:
        # What a schedule lacks is seen on the images it is scored on: some are easier than others.
        for width in world.space.widths:
            yield Step(world.score(width, tuple(world.space.dense()))[2], "screen")
    rng = np.random.default_rng([seed, len(screened)])
    missing = wanted - len(screened)
    if screened:
        batch = next_generation(world.space, rng, finals.as_expected(screened), missing)
    else:
        batch = first_generation(world.space, rng, missing, planned)
    for candidate in batch:
        width, schedule = candidate.width, tuple(candidate.schedule)
        top1, loss, seconds = world.score(width, schedule)
        screened.append(
            ScreenedSchedule(width, schedule, candidate.gmacs, top1, loss, method=candidate.method)
        )
        yield Step(seconds, "screen")
