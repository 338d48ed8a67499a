"""Schedules of every provenance, each within a cost: by hand, published, learnt, found."""

from __future__ import annotations

from collections.abc import Callable

from tokenpool import Schedule
from tune_spaces.shapes import POWERS, Cost, cheapened, constant_number, shaped

__all__ = ["DIFFRATE", "POWERBERT", "SQUEEZE", "by_hand", "diffrate", "learnt", "shape_names"]

DIFFRATE, POWERBERT, SQUEEZE = "diffrate", "powerbert", "squeeze"
# Tokens after each of DeiT-S's twelve blocks at 2.9 GMACs, the class token among them (Chen et
# al., DiffRate, ICCV 2023), of 197.
_PUBLISHED = (197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3)
_CONSTANT_NUMBER = "constant number"


def _power_names() -> dict[str, float]:
    return {"constant rate" if p == 0 else f"power {p:+g}": p for p in POWERS}


def shape_names() -> list[str]:
    """All that a configuration may name."""
    return [_CONSTANT_NUMBER, *_power_names(), DIFFRATE, POWERBERT, SQUEEZE]


def by_hand(name: str, depth: int, patches: int, cost: Cost, target: float) -> Schedule | None:
    """A shape of one parameter within a target; None where it cannot reach it."""
    if name == _CONSTANT_NUMBER:
        return constant_number(depth, patches, cost, target)
    if name == DIFFRATE:
        return diffrate(depth, patches, cost, target)
    return shaped(depth, patches, _power_names()[name], cost, target)


def diffrate(depth: int, patches: int, cost: Cost, target: float) -> Schedule | None:
    """DiffRate's published curve, read at the depth of this model, to the power that costs so much.

    Its last count, of what only the head reads, is taken for the last block of any depth.
    """
    kept = [(count - 1) / (_PUBLISHED[0] - 1) for count in _PUBLISHED]

    def at(layer: int) -> float:
        place = (layer + 1) / depth * len(kept) - 1
        low = max(0, min(int(place), len(kept) - 2))
        part = max(0.0, min(1.0, place - low))
        return kept[low] + part * (kept[low + 1] - kept[low])

    shares = [at(layer) for layer in range(depth)]

    def curve(power: float) -> Schedule:
        return Schedule(max(1, round(patches * share**power)) for share in shares)

    return cheapened(curve, cost, target, most=400.0)


def learnt(
    train: Callable[[float], Schedule], cost: Cost, target: float, runs: int
) -> Schedule | None:
    """The dearest schedule within a target among those that penalties give, by bisection.

    Args:
        train: PoWER-BERT's training under a penalty.
        cost: of a schedule.
        target: the most it may cost.
        runs: penalties tried, on a logarithmic scale.

    Returns:
        None where no penalty that was tried is hard enough.
    """
    low, high, best = 1e-5, 1.0, None
    for _ in range(runs):
        penalty = (low * high) ** 0.5
        found = train(penalty)
        if cost(found) > target:
            low = penalty
        else:
            high = penalty
            if best is None or cost(found) > cost(best):
                best = found
    return best
