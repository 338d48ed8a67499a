"""Our search among the contenders: what `tokenpool search` does, in one process.

The policy is the one that `tokenpool search` asks, and so are calibration, planner and scorer.
What its Ray actors and trials compute is computed here, and everything that runs on the device is
charged.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.search.finetuning import Finetuning
from benchmarks.search.steps import Step
from benchmarks.search.world import World
from pipelines.search.calibration import damage_table, plan, probe_counts, probes
from tune_spaces.candidate import Untrained
from tune_spaces.halving import rung_of
from tune_spaces.outlook import DenseModel, Prices
from tune_spaces.policy import FrontPolicy, PolicySettings, Score, Train
from tune_spaces.space import Candidate


def ours(world: World, seed: int) -> Iterator[Step]:
    """Calibrates and plans each width, then does what the policy says until it says no more."""
    planned: list[Candidate] = []
    dense = []
    for width in world.space.widths:
        yield from _calibrated(world, width, planned)
        # What a schedule lacks is seen on the images it is scored on: some are easier than others.
        untrained, _, seconds = world.score(width, tuple(world.space.dense()))
        yield Step(seconds, "screen")
        base = world.base_point(width)
        dense.append(DenseModel(width, base.gmacs, base.top1, untrained))
    policy = FrontPolicy(world.space, _settings(world, seed), dense, planned)
    runs: dict[str, Finetuning] = {}
    while (action := policy.ask()) is not None:
        if isinstance(action, Score):
            if action.is_new:
                policy.asked(action.candidates)
                continue
            for candidate in action.candidates:
                top1, loss, seconds = world.score(candidate.width, tuple(candidate.schedule))
                yield Step(seconds, "screen")
                policy.scored([Untrained(candidate, top1, loss)])
        elif isinstance(action, Train):
            yield from _trained(world, seed, policy, action, runs)


def _settings(world: World, seed: int) -> PolicySettings:
    config = world.config
    return PolicySettings(
        schedules=config.ours.schedules,
        generations=config.ours.rounds,
        trials=config.ours.trials,
        rounds=config.ours.rounds,
        prices=Prices(
            first=rung_of(config.halving.grace_epochs, config.finetune.epochs),
            last=config.finetune.epochs,
            images=config.finetune_images or len(world.pictures.split("train")[1]),
            measured=len(world.pictures.split("minival")[1]),
            floor=config.top1_floor,
            log_cost=config.log_cost,
        ),
        keep=1 / config.halving.reduction_factor,
        noise=config.ours.noise_margin,
        seed=seed,
    )


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


def _trained(
    world: World, seed: int, policy: FrontPolicy, action: Train, runs: dict[str, Finetuning]
) -> Iterator[Step]:
    """One step of training; as there is one device, a trial goes on at once or is paused."""
    name = action.trial_id
    if action.is_new:
        runs[name] = world.finetune(action.candidate, seed)
        policy.began(name, action.candidate)
    else:
        policy.resumed(name)
    until: int | None = action.until
    while until is not None:
        step = runs[name].run_to(until)
        yield step
        assert step.point is not None
        verdict = policy.reported(name, until, step.point.top1)
        until = None
        if verdict is None:
            policy.done(name)
        elif verdict.kept and policy.goes_on(name):
            until = policy.settings.prices.last
