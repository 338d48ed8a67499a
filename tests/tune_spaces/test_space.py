"""The space of schedules: monotone by construction, within its bounds, spread over the cost."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_spaces.limits import Limit
from tune_spaces.space import Candidate, ScheduleSpace

PATCHES = 64


def cost(width: int, schedule: Sequence[int]) -> float:
    """GMACs of a ViT's fully connected layers and attention, written out plainly."""
    total, tokens = 0.0, PATCHES + 1
    for kept in schedule:
        total += 12 * tokens * width**2 + 2 * tokens**2 * width
        tokens = kept + 1
    return total / 1e9


def latency(width: int, schedule: Sequence[int]) -> float:
    """Milliseconds of a machine that is slow where there are many tokens early on."""
    return width / 96 * (1 + schedule[0] / PATCHES + schedule[1] / PATCHES)


def dearer(width: int, schedule: Sequence[int]) -> float:
    """A method that costs a tenth more."""
    return 1.1 * cost(width, schedule)


COSTS = {"": cost, "plain": cost, "dear": dearer}


def make_space(**options: object) -> ScheduleSpace:
    defaults: dict = {"depth": 6, "patches": PATCHES, "widths": (64, 96), "cost": cost}
    return ScheduleSpace(**(defaults | options))


SPACES = [
    make_space(),
    make_space(step=8),
    make_space(step=7, min_tokens=5),
    make_space(max_gmacs=0.012),
    make_space(step=8, min_gmacs=0.01, max_gmacs=0.03),
    make_space(limits=[Limit("latency_ms", latency, 2.5)]),
    make_space(cost={"plain": cost, "dear": dearer}, max_gmacs=0.02),
]
SEEDS = st.integers(0, 2**32 - 1)
SPACE = st.sampled_from(SPACES)


def assert_in_space(candidate: Candidate, space: ScheduleSpace) -> None:
    counts = list(candidate.schedule)
    assert len(counts) == space.depth
    assert all(a >= b for a, b in itertools.pairwise([space.patches, *counts]))
    assert set(counts) <= set(space.levels.tolist())
    assert candidate.width in space.widths
    assert candidate.gmacs == pytest.approx(COSTS[candidate.method](candidate.width, counts))
    assert space.min_gmacs <= candidate.gmacs <= space.max_gmacs
    for limit in space.limits:
        assert limit.measure(candidate.width, candidate.schedule) <= limit.maximum


@settings(max_examples=60, deadline=None)
@given(space=SPACE, seed=SEEDS)
def test_whatever_is_made_is_in_the_space(space: ScheduleSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = space.sample(rng, 2)
    children = [
        space.mutate(rng, first),
        space.mutate(rng, first, num_layers=3, width_rate=1.0, method_rate=1.0),
        space.at_cost(first.arm, -space.encode(second.schedule) + 1e-3, first.gmacs),
    ]
    children = [child for child in children if space.contains(child)]
    for candidate in (first, second, *children):
        assert_in_space(candidate, space)


@settings(max_examples=60, deadline=None)
@given(space=SPACE, seed=SEEDS)
def test_mutation_moves_one_layer_only(space: ScheduleSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parent = space.sample(rng)[0]
    child = space.mutate(rng, parent, width_rate=0.0)
    changed = sum(a != b for a, b in zip(parent.schedule, child.schedule, strict=True))
    assert child.width == parent.width
    assert changed <= 1


def test_mutation_leaves_the_dense_and_the_smallest_schedule() -> None:
    space, rng = make_space(step=8), np.random.default_rng(0)
    for schedule in (space.dense(), space.smallest()):
        parent = space.candidate(64, schedule)
        assert space.mutate(rng, parent, width_rate=0.0).key != parent.key


def test_mutation_reaches_the_whole_of_a_small_space() -> None:
    space = make_space(depth=3, widths=(64,), step=16)
    rng = np.random.default_rng(1)
    seen = {space.candidate(64, space.dense()).key: space.candidate(64, space.dense())}
    for _ in range(3000):
        child = space.mutate(rng, seen[list(seen)[rng.integers(len(seen))]])
        seen[child.key] = child
    levels = space.levels.tolist()
    everything = {c for c in itertools.product(levels, repeat=3) if list(c) == sorted(c)[::-1]}
    assert {schedule for _, schedule, _ in seen} == everything


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, share=st.floats(0.05, 0.95))
def test_at_a_cost_is_nearly_the_dearest_of_a_shape_and_keeps_what_it_begins_with(
    seed: int, share: float
) -> None:
    space, rng = make_space(), np.random.default_rng(seed)
    parent = space.sample(rng, 1)[0]
    drops = rng.exponential(size=space.depth - 1)
    head = tuple(parent.schedule)[:1]
    found = [
        space.at_cost(parent.arm, drops, target * parent.gmacs, head) for target in (share, 1.0)
    ]
    for candidate in found:
        assert tuple(candidate.schedule)[:1] == head
    assert found[0].gmacs <= found[1].gmacs
    # Of all steepnesses there are, none within the target is much dearer.
    falls = np.cumsum(drops)
    costs = [
        space.cost(
            parent.width, (*head, *np.minimum(space._snap(head[0] * np.exp(-c * falls)), head))
        )
        for c in np.geomspace(1e-4, 1e3, 400)
    ]
    within = [cost for cost in costs if cost <= share * parent.gmacs]
    assert found[0].gmacs >= 0.995 * max(within, default=0.0)


def test_samples_are_found_where_few_schedules_are() -> None:
    """Costs on this grid are far apart: some targets have none between the bound and them."""
    for space in SPACES:
        for seed in range(1000, 1020):
            assert_in_space(space.sample(np.random.default_rng(seed))[0], space)


def test_samples_are_spread_evenly_over_the_cost() -> None:
    space = make_space()
    gmacs = np.array([c.gmacs for c in space.sample(np.random.default_rng(0), 400)])
    low = min(bounds[0] for bounds in space.cost_ranges.values())
    high = max(bounds[1] for bounds in space.cost_ranges.values())
    share = np.histogram(gmacs, bins=8, range=(low, high))[0] / len(gmacs)
    assert share.min() > 0.09
    assert share.max() < 0.16


def test_samples_differ_in_shape_at_the_same_cost() -> None:
    space = make_space(widths=(96,))
    samples = space.sample(np.random.default_rng(0), 300)
    middle = np.median([c.gmacs for c in samples])
    near = [c for c in samples if abs(c.gmacs - middle) < 0.1 * middle]
    # Some keep the first blocks dense and then drop, others drop at once and stay.
    assert min(c.schedule[0] for c in near) < 0.6 * PATCHES
    assert max(c.schedule[0] for c in near) == PATCHES


def test_the_same_seed_gives_the_same_samples() -> None:
    space = make_space()
    draws = [[c.key for c in space.sample(np.random.default_rng(7), 20)] for _ in range(2)]
    assert draws[0] == draws[1]


@settings(max_examples=60, deadline=None)
@given(space=SPACE, seed=SEEDS)
def test_encoding_is_undone_by_decoding(space: ScheduleSpace, seed: int) -> None:
    candidate = space.sample(np.random.default_rng(seed))[0]
    encoded = space.encode(candidate.schedule)
    assert encoded.shape == (space.depth,)
    assert (encoded <= 0).all()
    assert tuple(space.decode(encoded)) == tuple(candidate.schedule)


def test_a_width_beyond_the_bound_is_left_out() -> None:
    cheapest_of_96 = cost(96, [1] * 6)
    assert make_space(max_gmacs=0.99 * cheapest_of_96).widths == (64,)
    assert make_space(max_gmacs=1.01 * cheapest_of_96).widths == (64, 96)


def test_an_impossible_bound_names_what_is_possible() -> None:
    lowest = f"{cost(64, [1] * 6):.4g}"
    with pytest.raises(ValueError, match=f"width 64 costs {lowest} at 1 tokens"):
        make_space(max_gmacs=1e-4)


def test_bounds_with_no_schedule_between_them() -> None:
    # Width 64 with two blocks of 32 or 64 tokens costs 0.0055 or 0.0075 and nothing between.
    space = make_space(depth=2, widths=(64,), step=32, min_gmacs=0.006, max_gmacs=0.007)
    with pytest.raises(ValueError, match="finer step"):
        space.sample(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth"),
        ({"min_tokens": 65}, r"1\.\.64"),
        ({"widths": ()}, "at least one width"),
    ],
)
def test_impossible_sizes_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_space(**options)


def test_a_candidate_off_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="not in the space"):
        make_space(step=8).candidate(64, [60] * 6)


def test_a_limit_binds_without_emptying_the_space() -> None:
    space = make_space(widths=(96,), limits=[Limit("latency_ms", latency, 2.0)])
    samples = space.sample(np.random.default_rng(0), 100)
    for candidate in samples:
        assert_in_space(candidate, space)
    # Dear schedules are still found: they keep their tokens late instead of early.
    assert max(c.gmacs for c in samples) > 0.4 * cost(96, [PATCHES] * 6)
    with pytest.raises(ValueError, match="latency_ms up to 2"):
        space.candidate(96, space.dense())


def test_widths_beyond_a_limit_are_left_out() -> None:
    parameters = Limit("parameters", lambda width, _: 12 * 6 * width**2, 4e5)
    assert make_space(limits=[parameters]).widths == (64,)
    with pytest.raises(ValueError, match=r"parameters within 100: width 64 has 2\.949e\+05"):
        make_space(limits=[Limit("parameters", parameters.measure, 100)])


def test_a_space_of_several_methods_is_sampled_in_all_and_names_them() -> None:
    space = make_space(cost={"plain": cost, "dear": dearer})
    rng = np.random.default_rng(0)
    assert {c.arm for c in space.sample(rng, 60)} == set(space.cost_ranges)
    assert {c.method for c in space.sample(rng, 10, method="dear")} == {"dear"}
    parent = space.sample(rng, method="plain")[0]
    assert space.mutate(rng, parent, method_rate=1.0).method == "dear"
    assert space.mutate(rng, parent, method_rate=0.0, width_rate=0.0).method == "plain"
    assert space.candidate(64, space.dense(), "dear").gmacs == pytest.approx(
        1.1 * space.cost(64, space.dense(), "plain")
    )
    assert "plain, dear" in space.describe()
    with pytest.raises(ValueError, match="method other is not in the space"):
        space.candidate(64, space.dense(), "other")


def test_a_method_that_is_too_dear_is_left_out() -> None:
    least = cost(64, (1,) * 6)
    space = make_space(cost={"plain": cost, "dear": dearer}, max_gmacs=1.05 * least)
    assert space.methods == ("plain",) and space.widths == (64,)
