import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_spaces.evolution import (
    Scored,
    first_generation,
    next_generation,
    select,
    spread_over_cost,
)
from tune_spaces.pareto import front_ranks
from tune_spaces.space import ScheduleSpace


def make_space(depth=4, patches=16, widths=(8, 16), **options):
    return ScheduleSpace(
        depth, patches, widths, lambda width, s: width * (patches + sum(s)) / 1e3, **options
    )


def score(space, candidates):
    """A made-up quality: wider and longer schedules are better, early cuts worse."""
    return [
        Scored(c, np.log(c.width) + sum(np.sqrt(k) / (i + 1) for i, k in enumerate(c.schedule)))
        for c in candidates
    ]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), count=st.integers(1, 60))
def test_generations_are_new_valid_and_repeatable(seed, count):
    space = make_space()
    first = first_generation(space, np.random.default_rng(seed), count)
    assert len({c.key for c in first}) == len(first) == count
    scored = score(space, first)
    children = next_generation(space, np.random.default_rng(seed), scored, count)
    assert all(space.contains(c) for c in [*first, *children])
    keys = [c.key for c in [*first, *children]]
    assert len(set(keys)) == len(keys)
    again = next_generation(space, np.random.default_rng(seed), scored, count)
    assert [c.key for c in again] == [c.key for c in children]


def test_both_widths_are_sampled():
    first = first_generation(make_space(), np.random.default_rng(0), 20)
    assert {c.width for c in first} == {8, 16}


def test_simple_shapes_fill_two_thirds_of_what_the_seeds_leave_open():
    space = make_space(depth=6, patches=196)
    seeds = space.sample(np.random.default_rng(3), 8)
    first = first_generation(space, np.random.default_rng(0), 26, seeds)
    assert [c.key for c in first[:8]] == [c.key for c in seeds]
    for width in (8, 16):
        simple = [c for c in first[8:20] if c.width == width]
        assert len(simple) == 6
        costs = [c.gmacs for c in simple]
        assert costs == sorted(costs) and costs[-1] > 2 * costs[0]
        assert all(space.contains(c) for c in simple)
        # The first of them is a constant rate, the last's layers drop less and less.
        rates = [-np.diff(np.log([196, *c.schedule])) for c in simple]
        alive = np.array(simple[0].schedule) > 4
        assert np.ptp(rates[0][alive]) < 0.1
        assert rates[5][0] > rates[5][-1]
    assert len({c.key for c in first}) == 26


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), share=st.floats(0.2, 0.9))
def test_where_a_cost_is_wanted_all_are_as_dear_as_it_allows(seed, share):
    space = make_space(depth=6, patches=196, widths=(8,))
    low, high = space.cost_ranges[8, ""]
    target = low + share * (high - low)
    rng = np.random.default_rng(seed)
    seeds = space.sample(rng, 3)
    first = first_generation(space, rng, 14, seeds, [target])
    children = next_generation(space, rng, score(space, first), 20, targets=[target])
    assert len(first) > 3 and len(children) == 20
    for candidate in [*first, *children]:
        assert candidate.gmacs <= target
        # One token more in the last layers, and it would not.
        assert target - candidate.gmacs <= 8 * space.depth / 1e3


def test_of_more_seeds_than_wanted_each_width_has_its_share_over_its_cost():
    space = make_space()
    rng = np.random.default_rng(0)
    seeds = [c for width, n in ((8, 30), (16, 3)) for c in space.sample(rng, n, width=width)]
    first = first_generation(space, np.random.default_rng(1), 12, seeds)
    assert len(first) == 12 and {c.key for c in first} <= {c.key for c in seeds}
    assert sum(c.width == 16 for c in first) == 3
    costs = [c.gmacs for c in first if c.width == 8]
    offered = [c.gmacs for c in seeds if c.width == 8]
    assert min(costs) == min(offered) and max(costs) == max(offered)


def test_a_small_space_ends_instead_of_repeating():
    space = make_space(depth=1, patches=3, widths=(8,))
    first = first_generation(space, np.random.default_rng(0), 50)
    found = {tuple(c.schedule) for c in first}
    assert len(found) == len(first) and found <= {(1,), (2,), (3,)}
    rest = next_generation(space, np.random.default_rng(0), score(space, first), 5)
    found |= {tuple(c.schedule) for c in rest}
    assert found >= {(1,), (2,)}  # the dense one is known anyway
    assert len(first) + len(rest) == len(found)


def test_evolution_finds_better_schedules_than_sampling_alone():
    space = make_space(depth=6, patches=32)
    gains = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        scored = score(space, first_generation(space, rng, 40))
        while len(scored) < 200:
            scored += score(space, next_generation(space, rng, scored, 40))
        sampled = score(space, first_generation(space, np.random.default_rng(seed), 200))
        both = [*scored, *sampled]
        ranks = front_ranks([(s.candidate.gmacs, s.quality) for s in both])
        gains.append((ranks[: len(scored)] == 0).sum() - (ranks[len(scored) :] == 0).sum())
    assert np.median(gains) > 0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), count=st.integers(1, 30))
def test_select_takes_better_fronts_first(seed, count):
    space = make_space()
    scored = score(space, first_generation(space, np.random.default_rng(seed), 30))
    chosen = select(scored, count)
    assert len(chosen) == min(count, len(scored))
    ranks = front_ranks([(s.candidate.gmacs, s.quality) for s in scored])
    rank_of = {s.candidate.key: rank for s, rank in zip(scored, ranks, strict=True)}
    taken = sorted(rank_of[s.candidate.key] for s in chosen)
    assert taken == sorted(ranks)[: len(taken)]


def test_spread_takes_the_ends_and_the_even_middle():
    costs = np.array([0.0, 1.0, 2.0, 9.0, 10.0, 5.0])
    assert sorted(spread_over_cost(costs, np.arange(6), 3)) == [0, 4, 5]
    assert sorted(spread_over_cost(costs, np.arange(6), 9)) == [0, 1, 2, 3, 4, 5]
