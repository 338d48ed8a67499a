from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tokenpool import Schedule
from tune_spaces.shapes import POWERS, constant_number, shaped, shapes

DEPTH, PATCHES = 12, 196


def cost(schedule):
    return float(sum(schedule))


@given(st.sampled_from(POWERS), st.floats(0.05, 0.99))
def test_the_dearest_of_its_shape_within_the_target(power, share):
    target = share * DEPTH * PATCHES
    found = shaped(DEPTH, PATCHES, power, cost, target)
    assert len(found) == DEPTH and cost(found) <= target
    # Rounding moves a count by less than one, all of them by less than the depth.
    assert cost(found) > target - DEPTH


def test_power_zero_is_a_constant_rate():
    found = shaped(DEPTH, PATCHES, 0.0, cost, 0.5 * DEPTH * PATCHES)
    rates = [Schedule.constant_rate(DEPTH, PATCHES, r / 10000) for r in range(8000, 10000)]
    best = max((s for s in rates if cost(s) <= 0.5 * DEPTH * PATCHES), key=cost)
    assert max(abs(a - b) for a, b in zip(found, best, strict=True)) <= 1


def test_a_lower_power_pools_earlier():
    target = 0.4 * DEPTH * PATCHES
    found = [shaped(DEPTH, PATCHES, power, cost, target) for power in POWERS]
    assert [s[0] for s in found] == sorted(s[0] for s in found)
    assert [s[-1] for s in found] == sorted((s[-1] for s in found), reverse=True)


def test_a_constant_number_is_dropped_or_the_cost_is_out_of_reach():
    found = constant_number(DEPTH, PATCHES, cost, 0.6 * DEPTH * PATCHES)
    counts = (PATCHES, *found)
    drops = [a - b for a, b in pairwise(counts)]
    assert max(drops) - min(drops) <= 1 and cost(found) <= 0.6 * DEPTH * PATCHES
    # Of 12 layers that drop evenly down to one token the mean is 46 % of the patches.
    assert constant_number(DEPTH, PATCHES, cost, 0.4 * DEPTH * PATCHES) is None
    assert "constant number" not in shapes(DEPTH, PATCHES, cost, 0.4 * DEPTH * PATCHES)


def test_what_no_schedule_costs_is_left_out():
    assert shaped(DEPTH, PATCHES, 0.0, cost, 11.0) is None
    assert shapes(DEPTH, PATCHES, cost, 11.0) == {}
    assert shaped(DEPTH, PATCHES, 0.0, cost, 1e9) == Schedule.dense(DEPTH, PATCHES)
