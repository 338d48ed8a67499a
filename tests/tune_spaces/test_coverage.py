"""The map of candidates against the same choice made by looking at every candidate."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_spaces.coverage import CoverageMap
from tune_spaces.searcher import FrontSearcher


class LookAtAll:
    """What `CoverageMap` does, without remembering anything."""

    def __init__(self, places, quality, ranks):
        self.places, self.ranks = places, ranks
        self.quality = quality
        self.free, self.taken = np.ones(len(places), dtype=bool), []

    def most_telling(self):
        free = np.flatnonzero(self.free)
        if not self.taken:
            order = self.places.sum(axis=1) if self.quality is None else self.quality
            return int(free[np.argmax(order[free])])
        gaps = np.min(
            [np.linalg.norm(self.places[free] - self.places[t], axis=1) for t in self.taken], axis=0
        )
        value = np.round(gaps / (1.0 + self.ranks[free]), 12)
        tie = np.zeros(len(free)) if self.quality is None else self.quality[free]
        return int(free[np.lexsort((-tie, -value))[0]])

    def take(self, candidate):
        self.free[candidate] = False
        self.taken.append(candidate)

    def forget(self, candidate):
        self.taken.remove(candidate)


def agree(places, quality, ranks, actions):
    """Both make the same choices; an action is None to take, or the place of a failed trial."""
    fast, slow = CoverageMap(places, quality, ranks), LookAtAll(places, quality, ranks)
    for failed in actions:
        if failed is None:
            if not slow.free.any():
                break
            chosen = slow.most_telling()
            assert fast.most_telling() == chosen
        elif slow.taken:
            lost = slow.taken[failed % len(slow.taken)]
            fast.forget(lost)
            slow.forget(lost)
            continue
        else:
            chosen = failed % len(places)  # ran before a restart
        fast.take(chosen)
        slow.take(chosen)
        assert fast.num_free == slow.free.sum()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_same_choices_on_a_coarse_grid_full_of_ties(data):
    num_costs = data.draw(st.integers(1, 3))
    cell = st.lists(st.integers(0, 4), min_size=num_costs, max_size=num_costs)
    places = np.array(data.draw(st.lists(cell, min_size=1, max_size=60)), dtype=float) / 4
    n = len(places)
    levels = st.lists(st.integers(0, 3), min_size=n, max_size=n)
    quality = np.array(data.draw(levels), dtype=float) if data.draw(st.booleans()) else None
    ranks = np.array(data.draw(levels))
    actions = data.draw(st.lists(st.one_of(st.none(), st.none(), st.integers(0, 99)), max_size=70))
    agree(places, quality, ranks, actions)


@pytest.mark.parametrize("num_costs", [1, 2])
def test_the_same_choices_among_three_thousand(num_costs):
    rng = np.random.default_rng(0)
    places, quality = rng.random((3000, num_costs)), rng.random(3000)
    ranks = rng.integers(0, 40, 3000)
    actions = [None if u > 0.05 else int(u * 1e6) for u in rng.random(200)]
    agree(places, quality, ranks, actions)


def test_a_suggestion_stays_quick_among_fifty_thousand():
    rng = np.random.default_rng(0)
    pool = [{"gmacs": g, "top1": q} for g, q in rng.random((50_000, 2)).tolist()]
    searcher = FrontSearcher(pool, predicted="top1")
    for number in range(300):
        searcher.suggest(str(number))
    start = time.thread_time()
    for number in range(300, 500):
        searcher.suggest(str(number))
    assert (time.thread_time() - start) / 200 < 0.005
