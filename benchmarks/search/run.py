"""Every contender under every seed, until it has spent its share of what random search spends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.search import contenders
from benchmarks.search.contenders import Contender
from benchmarks.search.ours import ours
from benchmarks.search.steps import Step
from benchmarks.search.world import World

OURS, RANDOM = "ours", "random schedules"
CONTENDERS: dict[str, Contender] = {
    OURS: ours,
    RANDOM: contenders.random_schedules,
    "constant keep-rates": contenders.constant_rates,
    "PoWER-BERT λ sweep": contenders.powerbert_sweep,
    "Optuna NSGA-II": contenders.nsga2,
    "Optuna TPE": contenders.tpe,
    "independent finals, ASHA": contenders.asha,
}

Traces = dict[str, dict[int, list[Step]]]


def run(
    world: World,
    say: Callable[[str], None],
    *,
    names: Sequence[str] = tuple(CONTENDERS),
    seeds: int | None = None,
) -> Traces:
    """What each contender did, under each seed.

    Random search makes a number of evaluations; a share of the seconds they take is everybody
    else's budget under that seed. The seeds take turns, so that a bench that is cut short has all
    contenders.

    Args:
        world: the models and the prices.
        say: told what was done.
        names: of `CONTENDERS`; random search is always among them.
        seeds: how many; None for what the configuration says.
    """
    traces: Traces = {name: {} for name in CONTENDERS if name in names or name == RANDOM}
    first = world.config.first_seed
    for seed in range(first, first + (seeds or world.config.seeds)):
        # Random search goes first: it sets the budget.
        budget = float("inf")
        for name in sorted(traces, key=lambda name: name != RANDOM):
            limit = world.config.evaluations if name == RANDOM else None
            steps = _steps(world, CONTENDERS[name], seed, budget, limit)
            traces[name][seed] = steps
            spent = sum(step.seconds for step in steps)
            trained = sum(step.point is not None for step in steps)
            say(f"seed {seed}: {name}: {trained} models measured in {spent:.0f} device-seconds")
            if name == RANDOM:
                budget = spent * world.config.budget
    return traces


def _steps(
    world: World, contender: Contender, seed: int, budget: float, limit: int | None
) -> list[Step]:
    """Steps until the budget is spent; the last one that passes it is taken back."""
    steps: list[Step] = []
    spent = 0.0
    for step in contender(world, seed):
        spent += step.seconds
        if spent > budget:
            break
        steps.append(step)
        if len(steps) == limit:
            break
    return steps
