"""Our search among the contenders: calibrate, plan, screen, finals with Pareto-aware halving.

The modules are those of `tokenpool search`; what its Ray actors and trials compute is computed
here in one process, in the same order, and everything that runs on the device is charged.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipelines.search.bench.world import Step, World
from pipelines.search.calibrate import damage_table, plan, probe_counts, probes
from pipelines.search.stages.finalists import choose_finalists
from pipelines.search.stages.screen import as_scored
from pipelines.search.state import BaseState, ScreenedSchedule, SearchState
from tune_spaces.evolution import first_generation, next_generation
from tune_spaces.halving import Entry, HalvingRule
from tune_spaces.pareto import front_top1
from tune_spaces.scheduler import geometric_rungs
from tune_spaces.space import Candidate
from tune_spaces.volume import by_volume

Key = tuple[int, tuple[int, ...]]
# How much of what a schedule lacks untrained is left after training, before any was trained.
_FIRST_FACTOR = 0.5


def ours(world: World, seed: int) -> Iterator[Step]:
    """Calibrate and plan, then rounds of screening and finals, each larger than the one before."""
    planned: list[Candidate] = []
    for width in world.space.widths:
        yield from _calibrated(world, width, planned)
    screened: list[ScreenedSchedule] = []
    finals = _Finals(world, seed)
    rounds, margin = world.config.ours.rounds, world.config.ours.noise_margin
    for schedules, trials in rounds:
        yield from _screened(world, seed, planned, screened, schedules)
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
) -> Iterator[Step]:
    """One more generation, up to `wanted` schedules in all."""
    if not screened:
        # What a schedule lacks is seen on the images it is scored on: some are easier than others.
        for width in world.space.widths:
            yield Step(world.score(width, tuple(world.space.dense()))[2], "screen")
    rng = np.random.default_rng([seed, len(screened)])
    missing = wanted - len(screened)
    if screened:
        batch = next_generation(world.space, rng, as_scored(screened), missing)
    else:
        batch = first_generation(world.space, rng, missing, planned)
    for candidate in batch:
        width, schedule = candidate.width, tuple(candidate.schedule)
        top1, loss, seconds = world.score(width, schedule)
        screened.append(
            ScreenedSchedule(width, schedule, candidate.gmacs, top1, loss, method=candidate.method)
        )
        yield Step(seconds, "screen")


def untrained_top1(screened: list[ScreenedSchedule]) -> dict[Key, float]:
    """Top-1 of each schedule without training, the noise of few images taken out.

    Cross-entropy orders schedules more reliably than top-1. So within a width the best top-1 is
    given to the schedule of the least cross-entropy, the next to the next, and so on.
    """
    found: dict[Key, float] = {}
    for width in {row.width for row in screened}:
        own = [row for row in screened if row.width == width]
        order = sorted(own, key=lambda row: row.loss)
        values = sorted((row.top1 for row in own), reverse=True)
        found |= {(width, r.schedule): value for r, value in zip(order, values, strict=True)}
    return found


class _Finals:
    """Fine-tunings, the one next that should add most to the front of what is trained by then.

    What a schedule comes to is expected from its top-1 without training: that it lacks against its
    dense model shrinks by as much as it did, in the middle, for those trained so far.
    """

    def __init__(self, world: World, seed: int) -> None:
        config = world.config
        self._world, self._seed = world, seed
        bases = [world.base_point(width) for width in world.space.widths]
        self._dense = {base.width: base.top1 for base in bases}
        self._bases = [
            BaseState(base.width, world.heads[base.width], base.gmacs, top1_minival=base.top1)
            for base in bases
        ]
        self._known = [(base.gmacs, base.top1) for base in bases]
        self._shrunk: list[float] = []
        self._trained: set[Key] = set()
        self._rule = HalvingRule(
            keep=1 / config.halving.reduction_factor, noise=(config.ours.noise_margin,)
        )
        self._last = config.finetune.epochs
        rungs = geometric_rungs(
            config.halving.grace_epochs, self._last, config.halving.reduction_factor
        )
        self._rungs: dict[int, dict[str, Entry]] = {rung: {} for rung in rungs}

    def run(self, screened: list[ScreenedSchedule], trials: int, margin: float) -> Iterator[Step]:
        """Trains until there were `trials` in all, or none is expected `margin` above the front."""
        state = SearchState("bench", screened=screened, num_classes=self._world.num_classes)
        state.bases = self._bases
        every = len(screened) * len(self._bases)
        pool = [entry.candidate for entry in choose_finalists(state, every)]
        top1 = untrained_top1(screened)
        reference = (self._world.reference_gmacs, self._world.config.top1_floor)
        while len(self._trained) < trials:
            left = [c for c in pool if (c.width, tuple(c.schedule)) not in self._trained]
            if not left:
                return
            points = [(c.gmacs, self._expected(c, top1)) for c in left]
            # What is expected to add less than the noise waits for another round of screening.
            known = [(gmacs, quality + margin) for gmacs, quality in self._known]
            best = by_volume(points, known, reference)[0]
            cost, expected = points[best]
            if expected <= max(front_top1(cost, known), reference[1]):
                return
            yield from self._train(left[best], top1)

    def _expected(self, candidate: Candidate, top1: dict[Key, float]) -> float:
        lacks = self._lacks(candidate, top1)
        return self._dense[candidate.width] - self._factor * lacks

    def _lacks(self, candidate: Candidate, top1: dict[Key, float]) -> float:
        """What it lacks untrained against the dense model, on the same images."""
        width, dense = candidate.width, tuple(self._world.space.dense())
        known, _, _ = self._world.score(width, dense)  # asked and paid for already
        return max(0.0, known - top1[width, tuple(candidate.schedule)])

    @property
    def _factor(self) -> float:
        return float(np.median([_FIRST_FACTOR, *self._shrunk]))

    def _train(self, candidate: Candidate, top1: dict[Key, float]) -> Iterator[Step]:
        key = (candidate.width, tuple(candidate.schedule))
        trial_id = f"t{len(self._trained):03d}"
        self._trained.add(key)
        run = self._world.finetune(candidate, self._seed)
        for epoch in [*self._rungs, self._last]:
            step = run.run_to(epoch)
            yield step
            assert step.point is not None
            self._known.append((step.point.gmacs, step.point.top1))
            if epoch == self._last:
                lacked = self._lacks(candidate, top1)
                if lacked > 0:
                    shrunk = (self._dense[candidate.width] - step.point.top1) / lacked
                    self._shrunk.append(min(1.0, max(0.0, shrunk)))
                return
            rung = self._rungs[epoch]
            entry = Entry((step.point.gmacs,), (step.point.top1,))
            rung[trial_id] = entry
            verdict = self._rule.judge(trial_id, rung)
            rung[trial_id] = Entry(entry.costs, entry.qualities, verdict.kept)
            if not verdict.kept:
                return
