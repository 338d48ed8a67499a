"""Schedules of one parameter: what a person would try by hand, solved for a cost.

They are what a search has to beat, and good to begin one with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tokenpool import Schedule

__all__ = ["POWERS", "cheapened", "constant_number", "shaped", "shapes"]

POWERS = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Of `shaped`: below 0 early layers pool more, 0 is a constant rate, above 0 late ones do."""

_BISECTIONS = 50

Cost = Callable[[Schedule], float]


def shaped(depth: int, patches: int, power: float, cost: Cost, target: float) -> Schedule | None:
    """k_l ∝ exp(−c · Σ_{i ≤ l} i^power), with the least c whose cost is within the target.

    Args:
        depth: the number of blocks.
        patches: the patch tokens that enter the first block.
        power: which layers pool most; see `POWERS`.
        cost: gives the cost of a schedule; must not rise as c does.
        target: the most a schedule may cost, in the same unit.

    Returns:
        None where even one token a layer, or the fewest a method can leave, cost more.
    """
    exponents = [sum(i**power for i in range(1, layer + 1)) for layer in range(1, depth + 1)]

    def curve(strength: float) -> Schedule:
        return Schedule(max(1, round(patches * math.exp(-strength * e))) for e in exponents)

    return cheapened(curve, cost, target, most=math.log(2 * patches) / exponents[0])


def constant_number(depth: int, patches: int, cost: Cost, target: float) -> Schedule | None:
    """The same number of tokens dropped after every layer, as ToMe publishes.

    Parts of a token add up over the layers, so that any cost is met.

    Args:
        depth: the number of blocks.
        patches: the patch tokens that enter the first block.
        cost: gives the cost of a schedule.
        target: the most a schedule may cost, in the same unit.

    Returns:
        None where a layer would have to keep less than one token: this shape does not reach so low.
    """

    def curve(number: float) -> Schedule:
        return Schedule(max(1, patches - round(number * layer)) for layer in range(1, depth + 1))

    return cheapened(curve, cost, target, most=(patches - 1) / depth)


def shapes(
    depth: int, patches: int, cost: Cost, target: float, powers: Sequence[float] = POWERS
) -> dict[str, Schedule]:
    """All shapes within a cost, by name; those that cannot reach it are left out.

    Args:
        depth: the number of blocks.
        patches: the patch tokens that enter the first block.
        cost: gives the cost of a schedule.
        target: the most a schedule may cost, in the same unit.
        powers: which shapes of `shaped` there are.
    """
    found = {"constant number": constant_number(depth, patches, cost, target)}
    for power in powers:
        name = "constant rate" if power == 0 else f"power {power:+g}"
        found[name] = shaped(depth, patches, power, cost, target)
    return {name: schedule for name, schedule in found.items() if schedule is not None}


def cheapened(
    curve: Callable[[float], Schedule], cost: Cost, target: float, most: float
) -> Schedule | None:
    """The schedule of least strength whose cost is within the target, if there is one.

    Args:
        curve: gives the schedule of a strength; a greater one keeps fewer tokens.
        cost: gives the cost of a schedule.
        target: the most a schedule may cost, in the same unit.
        most: the greatest strength.
    """
    low, high = 0.0, most
    if cost(curve(low)) <= target:
        return curve(low)
    if cost(curve(high)) > target:
        return None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if cost(curve(middle)) <= target:
            high = middle
        else:
            low = middle
    return curve(high)
