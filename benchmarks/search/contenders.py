"""The peers: other ways to choose what to train, on the same evaluations.

Each is a generator of `Step`s that goes on until its caller stops asking or it has nothing left.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np

import tokenpool as tp
from benchmarks.search.steps import Step
from benchmarks.search.world import World
from tune_spaces.space import Candidate

Contender = Callable[[World, int], Iterator[Step]]
# NSGA-II breeds from so many at a time; Optuna's 50 would be all of a small budget.
_POPULATION = 12
_TPE_STARTUP = 10


def random_schedules(world: World, seed: int) -> Iterator[Step]:
    """Random candidates, spread evenly over the cost."""
    for candidate in _random_candidates(world, seed):
        yield world.evaluate(candidate, seed)


def constant_rates(world: World, seed: int) -> Iterator[Step]:
    """Every layer keeps the same share: all rates and widths, in an order of chance."""
    grid = list(product(world.space.widths, world.config.rates))
    for index in np.random.default_rng([seed, 1]).permutation(len(grid)):
        width, rate = grid[index]
        schedule = tp.Schedule.constant_rate(world.space.depth, world.space.patches, rate)
        yield world.evaluate(_nearest(world, width, schedule), seed)


def powerbert_sweep(world: World, seed: int) -> Iterator[Step]:
    """PoWER-BERT's soft-extract training for each λ and width; what it finds is evaluated."""
    grid = list(product(world.space.widths, world.config.powerbert.penalties))
    for index in np.random.default_rng([seed, 2]).permutation(len(grid)):
        width, penalty = grid[index]
        counts, seconds = world.powerbert(width, penalty, seed)
        yield Step(seconds, "soft-extract")
        yield world.evaluate(_nearest(world, width, tp.Schedule(counts)), seed)


def nsga2(world: World, seed: int) -> Iterator[Step]:
    """Optuna's NSGA-II, through Ray Tune's OptunaSearch."""
    from optuna.samplers import NSGAIISampler

    return _optuna(world, seed, NSGAIISampler(population_size=_POPULATION, seed=seed))


def tpe(world: World, seed: int) -> Iterator[Step]:
    """Optuna's multi-objective TPE, through Ray Tune's OptunaSearch."""
    from optuna.samplers import TPESampler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `multivariate` is called experimental
        sampler = TPESampler(seed=seed, n_startup_trials=_TPE_STARTUP, multivariate=True)
    return _optuna(world, seed, sampler)


def asha(world: World, seed: int) -> Iterator[Step]:
    """Independent finals of random candidates under Ray Tune's ASHA, on top-1 alone."""
    from ray.tune.schedulers import ASHAScheduler, TrialScheduler

    config = world.config
    scheduler: Any = ASHAScheduler(
        time_attr="epoch",
        metric="top1",
        mode="max",
        grace_period=config.halving.grace_epochs,
        max_t=config.finetune.epochs,
        reduction_factor=config.halving.reduction_factor,
    )
    rungs = [int(rung) for rung, _ in reversed(scheduler._brackets[0]._rungs)]
    milestones = sorted({*rungs, config.finetune.epochs})
    for number, candidate in enumerate(_random_candidates(world, seed)):
        trial = SimpleNamespace(trial_id=f"t{number}")
        scheduler.on_trial_add(None, trial)
        run = world.finetune(candidate, seed)
        for epoch in milestones:
            step = run.run_to(epoch)
            yield step
            assert step.point is not None
            result = {"epoch": epoch, "top1": step.point.top1}
            if scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:
                break


def _optuna(world: World, seed: int, sampler: Any) -> Iterator[Step]:
    """Two objectives, over the width and each layer's keep-rate against the one before.

    Tune's controller is left out: it would ask and tell the same searcher in the same order, one
    trial after the other as here.
    """
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    depth = world.space.depth
    space = {
        "width": CategoricalDistribution(list(world.space.widths)),
        **{
            f"rate{layer}": FloatDistribution(world.config.least_rate, 1.0)
            for layer in range(depth)
        },
    }
    searcher = OptunaSearch(space, metric=["gmacs", "top1"], mode=["min", "max"], sampler=sampler)
    number = 0
    while True:
        trial_id = f"t{number}"
        number += 1
        config = searcher.suggest(trial_id)
        assert config is not None
        tokens, counts = world.space.patches, []
        for layer in range(depth):
            tokens = max(world.config.min_tokens, int(tokens * config[f"rate{layer}"] + 0.5))
            counts.append(tokens)
        candidate = _nearest(world, config["width"], tp.Schedule(counts))
        step = world.evaluate(candidate, seed)
        yield step
        assert step.point is not None
        result = {"gmacs": step.point.gmacs, "top1": step.point.top1}
        searcher.on_trial_complete(trial_id, result)


def _random_candidates(world: World, seed: int) -> Iterator[Candidate]:
    rng = np.random.default_rng([seed, 0])
    while True:
        yield from world.space.sample(rng)


def _nearest(world: World, width: int, schedule: tp.Schedule) -> Candidate:
    """A peer's schedule, brought to the tokens the space allows."""
    return world.space.candidate(width, [max(count, world.config.min_tokens) for count in schedule])
