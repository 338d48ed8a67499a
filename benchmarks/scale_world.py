"""A made-up world for benchmarks/scale_simulation.py and scale_ray.py: what training would show.

The space is that of a DeiT with 12 blocks at 224 px in two widths, the costs are real. Top-1
without training, after each epoch and at the end is a formula with noise, always the same for the
same schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenpool import Schedule
from tokenpool.cost import VitSpec, vit_macs
from tune_spaces.candidate import Untrained
from tune_spaces.outlook import DenseModel, Prices
from tune_spaces.policy import FrontPolicy, PolicySettings
from tune_spaces.space import Candidate, ScheduleSpace

HEADS = {192: 3, 384: 6}
TOP1 = {192: 0.72, 384: 0.80}
PATCHES, DEPTH, METHOD = 196, 12, "leader"
SPECS = {w: VitSpec(w, DEPTH, (14, 14), 1, 4 * w, 768, 1000, h) for w, h in HEADS.items()}
DENSE = {w: vit_macs(SPECS[w], Schedule.dense(DEPTH, PATCHES)).gmacs for w in SPECS}
# Little enough that thousands of schedules promise to be on the front. A search ends by itself
# where nothing does any more; with ten times as much of each that is after a hundred trials.
SHAPE, OWN, RECOVERED = 0.002, 0.0005, 0.1
NOISE = 0.0003  # of top-1, after each epoch


@dataclass(frozen=True)
class Assumptions:
    """What is made up; seconds where nothing else is said."""

    epoch_base: float = 20.0  # loading, evaluation
    epoch_per_gmac: float = 12.0  # ImageNet on eight GPUs: DeiT-S about 75 s an epoch
    score: float = 10.0  # of a schedule without training, on one GPU
    start: float = 20.0  # of a trial's processes, GPUs held and not yet computing
    teardown: float = 3.0  # until the GPUs of a trial that ended are free
    tune_per_report: float = 0.006  # of the driver, beside the decision: benchmarks/scale_ray.py
    tune_per_start: float = 0.060
    node_mtbf: float = 1000 * 3600.0  # of each node
    node_repair: float = 900.0


def make_policy(
    schedules: int, trials: int, rounds: int, first: int, last: int, seed: int = 0
) -> FrontPolicy:
    """What decides in a search, over this world.

    Args:
        schedules: scored without training, in all.
        trials: begun at most.
        rounds: of scoring and training.
        first: epochs to the rung.
        last: epochs to the end.
        seed: of the policy.
    """
    space = ScheduleSpace(
        DEPTH,
        PATCHES,
        list(HEADS),
        {METHOD: lambda width, schedule: vit_macs(SPECS[width], schedule, METHOD).gmacs},
        min_tokens=2,
    )
    dense = [DenseModel(w, space.cost(w, space.dense()), top1, top1) for w, top1 in TOP1.items()]
    prices = Prices(first, last, images=1_281_167, measured=10_000, floor=0.001)
    settings = PolicySettings(
        schedules, rounds, trials, rounds, prices, keep=0.5, noise=2 * NOISE, seed=seed
    )
    return FrontPolicy(space, settings, dense)


def untrained(candidates: Sequence[Candidate]) -> list[Untrained]:
    """What scoring without training says of each."""
    found = []
    for candidate in candidates:
        lack, draw = _lack(candidate), _drawn(candidate, 0)
        top1 = max(0.001, TOP1[candidate.width] - 2.2 * lack + 0.005 * draw)
        found.append(Untrained(candidate, top1, 0.9 + 8 * lack + 0.02 * draw))
    return found


def trained(candidate: Candidate, epoch: int, last: int) -> float:
    """Top-1 after an epoch of `last`."""
    own = OWN * _drawn(candidate, -1)  # what no score tells
    left = 1 + RECOVERED * math.exp(-5 * epoch / last)
    top1 = TOP1[candidate.width] - _lack(candidate) * left + own
    return max(0.001, top1 + NOISE * _drawn(candidate, epoch))


def _lack(candidate: Candidate) -> float:
    """What pooling costs at the end: it follows the MACs, and a little the schedule's shape."""
    kept = np.log(np.array([PATCHES, *candidate.schedule]) / PATCHES)
    saved = max(0.0, 1 - candidate.gmacs / DENSE[candidate.width])
    return float(0.12 * saved**1.5 + SHAPE * np.diff(kept).std())


def _drawn(candidate: Candidate, what: int) -> float:
    """A standard normal number."""
    rng = np.random.default_rng([candidate.width, *candidate.schedule, what + 1])
    return float(rng.standard_normal())
