import math
from itertools import pairwise

import numpy as np
import pytest

import tokenpool as tp
from pipelines.search.calibration import damage_table, plan, probe_counts, probes
from tune_spaces.space import ScheduleSpace

DEPTH, PATCHES = 4, 16
SPEC = tp.vit_spec(tp.build_vit(16, 4, 24, DEPTH, 3, 10))


def make_space(**bounds):
    return ScheduleSpace(
        DEPTH, PATCHES, [24], lambda width, s: tp.vit_macs(SPEC, s, "wkmedoids").gmacs, **bounds
    )


def truth(layer, k_in, k_out):
    """A damage that is a sum over layers: early layers suffer more."""
    return math.log(k_in / k_out) ** 1.5 / (layer + 1)


def divergence(schedule):
    before, total = PATCHES, 0.0
    for layer, kept in enumerate(schedule):
        total += truth(layer, before, kept)
        before = kept
    return total


def test_damages_that_add_up_are_found_exactly():
    counts = probe_counts(make_space(), 4)
    assert counts[0] == 1 and counts[-1] == PATCHES and len(counts) == 4
    needed = probes(DEPTH, counts)
    assert len(set(needed)) == len(needed) == 3 + 3 * (3 + 3)
    for schedule in needed:
        tp.Schedule(schedule).check(DEPTH, PATCHES)
    table = damage_table(DEPTH, counts, {s: divergence(s) for s in needed})
    for layer in range(DEPTH):
        for i, k_in in enumerate(counts):
            for j, k_out in enumerate(counts[:i]):
                if layer or k_in == PATCHES:
                    assert table.damage[layer, i, j] == pytest.approx(truth(layer, k_in, k_out))


def test_planned_schedules_beat_random_ones_of_no_more_cost():
    space = make_space()
    counts = probe_counts(space, 5)
    table = damage_table(DEPTH, counts, {s: divergence(s) for s in probes(DEPTH, counts)})
    found = plan(space, SPEC, "wkmedoids", table, seeds=20, bins=6)
    assert len(found) >= 20
    costs = [candidate.gmacs for candidate, _ in found]
    assert costs == sorted(costs)
    for candidate, _ in found:
        report = tp.vit_macs(SPEC, candidate.schedule, "wkmedoids")
        assert candidate.gmacs == pytest.approx(report.gmacs)
    wins = []
    for rival in space.sample(np.random.default_rng(0), 60):
        able = [c for c, _ in found if c.gmacs <= rival.gmacs]
        if able:
            wins.append(divergence(able[-1].schedule) <= divergence(rival.schedule) + 0.05)
    assert sum(wins) >= 0.9 * len(wins) > 20


def test_bounds_hold_and_a_method_that_needs_more_than_counts_is_not_planned():
    space = make_space(max_gmacs=0.6 * make_space().cost(24, make_space().dense()))
    counts = probe_counts(space, 4)
    table = damage_table(DEPTH, counts, {s: divergence(s) for s in probes(DEPTH, counts)})
    found = plan(space, SPEC, "wkmedoids", table, seeds=10, bins=4)
    assert found and all(candidate.gmacs <= space.max_gmacs for candidate, _ in found)
    assert plan(space, SPEC, "grid", table, seeds=10, bins=4) == []
    merged = plan(space, SPEC, "tome", table, seeds=10, bins=4)
    for candidate, _ in merged:
        counts_ = (PATCHES, *candidate.schedule)
        assert all(2 * after >= before for before, after in pairwise(counts_))
