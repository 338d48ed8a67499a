"""The planner against every schedule there is, on spaces small enough to list them."""

from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenpool as tp
from tokenpool.cost import block_macs
from tune_spaces.planner import DamageTable, PlannedSchedule, plan_front, spread_over_bins


def totals(levels, cost, damage):
    """(cost, damage, schedule) of every monotone schedule, by adding up."""
    size = len(levels)
    for indices in combinations_with_replacement(range(size), len(cost)):
        path = indices[::-1]
        spent = lost = 0.0
        before = size - 1
        for layer, now in enumerate(path):
            spent += cost[layer, before, now]
            lost += damage[layer, before, now]
            before = now
        yield spent, lost, tuple(levels[i] for i in path)


@given(
    size=st.integers(2, 5),
    depth=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    whole=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_the_front_is_that_of_exhaustive_enumeration(size, depth, seed, whole):
    rng = np.random.default_rng(seed)
    levels = sorted(rng.choice(np.arange(1, 30), size, replace=False).tolist())
    # Whole numbers make ties.
    draw = (
        (lambda: rng.integers(0, 4, (depth, size, size)).astype(float))
        if whole
        else (lambda: rng.random((depth, size, size)))
    )
    cost, damage = draw(), draw()
    everything = list(totals(levels, cost, damage))
    found = plan_front(levels, cost, damage)
    for entry in found:
        assert (entry.cost, entry.damage) == pytest.approx(
            next((c, d) for c, d, s in everything if s == tuple(entry.schedule)), abs=1e-9
        )
        assert not any(
            c <= entry.cost + 1e-9
            and d <= entry.damage + 1e-9
            and (c < entry.cost - 1e-9 or d < entry.damage - 1e-9)
            for c, d, _ in everything
        )
    # None is missing: for every schedule there is one that is no worse.
    for c, d, _ in everything:
        assert any(e.cost <= c + 1e-9 and e.damage <= d + 1e-9 for e in found)


def test_a_bound_on_the_cost_and_what_cannot_be_made_are_kept_out():
    rng = np.random.default_rng(3)
    levels, cost, damage = [1, 2, 4, 8], rng.random((3, 4, 4)), rng.random((3, 4, 4))
    cost[:, 3, 0] = np.inf  # more than a half at once
    everything = [t for t in totals(levels, cost, damage) if t[0] <= 1.2]
    found = plan_front(levels, cost, damage, max_cost=1.2)
    assert found
    for c, d, _ in everything:
        assert any(e.cost <= c + 1e-9 and e.damage <= d + 1e-9 for e in found)
    assert all(e.cost <= 1.2 and e.schedule[0] != 1 for e in found)


def test_thinned_labels_stay_close_to_the_exact_front():
    rng = np.random.default_rng(0)
    levels = list(range(1, 9))
    cost = np.sort(rng.random((5, 8, 8)), axis=2)
    damage = -np.sort(-rng.random((5, 8, 8)), axis=2)
    exact = plan_front(levels, cost, damage)
    thin = plan_front(levels, cost, damage, max_labels=50)
    assert len(thin) <= len(exact)
    slice_ = (exact[-1].cost - exact[0].cost) / 50
    for entry in exact:
        assert any(
            t.cost <= entry.cost + 5 * slice_ and t.damage <= entry.damage + 1e-9 for t in thin
        )


def test_costs_of_blocks_add_up_to_that_of_the_model():
    spec = tp.vit_spec(tp.build_vit(32, 4, 24, 4, 3, 10))
    for method in ("wkmedoids", "kmeans", "powerbert", "tome"):
        schedule = (50, 40, 40, 31)
        before, total = spec.patches, 0
        for layer, kept in enumerate(schedule, start=1):
            total += block_macs(spec, layer, before, kept, method).total
            before = kept
        whole = tp.vit_macs(spec, tp.Schedule(schedule), method)
        assert total == whole.total - whole.patch_embed - whole.head


def test_the_table_gives_back_what_was_measured_and_interpolates_between():
    counts = [4, 8, 16]
    damage = np.zeros((2, 3, 3))
    damage[0, 2, 1], damage[0, 2, 0], damage[0, 1, 0] = 1.0, 3.0, 5.0
    damage[1] = 2 * damage[0]
    table = DamageTable(counts, damage)
    np.testing.assert_allclose(table.at(counts), np.tril(damage))
    levels = [2, 4, 8, 11.313708, 16]
    between = table.at(levels)
    # Half-way to 8 from 16 on a log axis: half of the root; below 4 the root goes on as steeply.
    assert between[0, 4, 3] == pytest.approx(0.25, abs=1e-5)
    assert between[0, 4, 0] == pytest.approx((2 * 3**0.5 - 1) ** 2)
    assert (between >= 0).all()
    assert (np.diff(between[1], axis=1) <= 1e-12).all()


def test_a_plan_from_few_counts_spreads_the_drops_where_damage_is_quadratic():
    """The truth is known at every count; measured at six of them, the plan loses little."""
    levels = list(range(1, 65))
    rate = np.log(np.array(levels)[:, None] / np.array(levels)[None, :]).clip(min=0)
    truth = np.array([1.0, 2.0, 0.5, 1.0])[:, None, None] * rate**2
    cost = np.broadcast_to(np.array(levels, dtype=float)[None, :, None], truth.shape)
    cost = cost + 0.5 * np.array(levels)[None, None, :]
    counts = [2, 4, 8, 16, 32, 64]
    rows = [levels.index(count) for count in counts]
    measured = DamageTable(counts, truth[:, rows][:, :, rows])
    best = plan_front(levels, cost, truth, max_labels=400)
    found = plan_front(levels, cost, measured.at(levels), max_labels=400)

    def real(schedule):
        steps = [levels.index(count) for count in (64, *schedule)]
        return sum(truth[layer, i, j] for layer, (i, j) in enumerate(pairwise(steps)))

    for budget in (120, 160, 200, 240, 280):
        exact = min(entry.damage for entry in best if entry.cost <= budget)
        planned = min((e for e in found if e.cost <= budget), key=lambda e: e.damage)
        assert real(planned.schedule) <= 1.15 * exact + 1e-9


def test_noise_of_the_measurement_is_taken_out():
    damage = np.zeros((1, 3, 3))
    damage[0, 2] = [0.5, 0.7, 9.0]  # fewer tokens seem to do less damage; the diagonal is not read
    damage[0, 1, 0] = -0.1
    np.testing.assert_allclose(
        DamageTable([4, 8, 16], damage).damage[0], [[0, 0, 0], [0, 0, 0], [0.7, 0.7, 0]]
    )
    with pytest.raises(ValueError, match="not finite"):
        DamageTable([4, 8, 16], damage * np.nan)
    with pytest.raises(ValueError, match="ascend"):
        DamageTable([8, 4, 16], damage)


def test_a_whole_deit_is_planned_in_seconds_over_many_costs():
    """The issue's figures: at least 40 seeds over at least 12 cost bins, in seconds."""
    import time

    spec = tp.VitSpec(384, 12, (14, 14), 1, 1536, 768, 1000, 6)
    levels = [*range(8, 196, 8), 196]
    cost = np.full((12, len(levels), len(levels)), np.inf)
    for layer in range(12):
        for i, k_in in enumerate(levels):
            for j, k_out in enumerate(levels[: i + 1]):
                cost[layer, i, j] = block_macs(spec, layer + 1, k_in, k_out).gmacs
    rng = np.random.default_rng(0)
    rate = np.log(np.array(levels)[:, None] / np.array(levels)[None, :]).clip(min=0)
    damage = np.exp(rng.normal(size=(12, 1, 1))) * rate**2
    began = time.perf_counter()
    found = plan_front(levels, cost, damage)
    seeds = spread_over_bins(found, 40, 12)
    assert time.perf_counter() - began < 10
    assert len(seeds) >= 40
    costs = np.log([s.cost for s in seeds])
    edges = np.linspace(costs.min(), costs.max(), 13)[1:-1]
    assert len(set(np.searchsorted(edges, costs).tolist())) == 12


def test_few_planned_schedules_are_all_taken():
    few = [PlannedSchedule(tp.Schedule((i, i)), float(i), 1.0 / i) for i in range(1, 6)]
    assert spread_over_bins(few, 10) == few
    many = [PlannedSchedule(tp.Schedule((i, i)), float(i), 1.0 / i) for i in range(1, 200)]
    assert len(spread_over_bins(many, 20, 4)) >= 20
