import numpy as np
import pytest
from scipy.stats import kendalltau

from pipelines.search.agreement import LEAST_PAIRS, Final, agreement, tau_of_pairs


@pytest.mark.parametrize("levels", [3, 8, 1000])
def test_tau_is_scipys_with_and_without_ties(levels):
    rng = np.random.default_rng(levels)
    for _ in range(20):
        a, b = rng.integers(levels, size=(2, 15)) / 7
        pairs = [(a[i] - a[j], b[i] - b[j]) for i in range(15) for j in range(i)]
        assert tau_of_pairs(pairs) == pytest.approx(kendalltau(a, b).statistic)
    assert tau_of_pairs([(0.0, 1.0), (0.0, 2.0)]) is None and tau_of_pairs([]) is None


def final(cost, score, result, group=96, epoch=3):
    return Final(group, cost, score, {epoch: result})


def test_only_finals_of_about_equal_cost_and_of_one_group_are_compared():
    # Dearer ones are better and score higher; among four of equal cost the score is upside down.
    finals = [
        final(bin + 0.01 * i, bin + 0.1 * (3 - i), bin + 0.1 * i, group)
        for group in (96, 64)
        for bin in range(3)
        for i in range(4)
    ]
    found = agreement(finals)
    assert (found.tau, found.pairs, found.bins) == (-1.0, 6 * 6, 6)
    everything = agreement(finals, per_bin=100)
    assert everything.pairs == 2 * 66 and everything.tau > 0.4
    # What another group does is all the same.
    moved = [f if f.group == 96 else final(f.cost, f.score, -f.cost, 64) for f in finals]
    assert agreement([f for f in moved if f.group == 96]).tau == -1.0


def test_a_stopped_final_is_compared_where_it_was_stopped():
    early = Final(8, 1.0, 0.9, {1: 0.5, 2: 0.6})
    late = Final(8, 1.1, 0.4, {1: 0.3, 2: 0.4, 3: 0.8})
    assert agreement([early, late]).tau == 1.0
    never = Final(8, 1.2, 0.1, {})
    assert agreement([early, late, never]).pairs == 1
    assert agreement([never]).tau is None and agreement([]).pairs == 0


def test_it_takes_some_pairs_to_distrust_screening():
    few = agreement([final(1.0 + i, -i, i) for i in range(3)])
    assert few.tau == -1.0 and few.pairs < LEAST_PAIRS and not few.below(0.6)
    enough = agreement([final(1.0 + i, -i, i) for i in range(4)])
    assert enough.pairs == LEAST_PAIRS and enough.below(0.6)
    assert not agreement([final(1.0 + i, i, i) for i in range(4)]).below(0.6)
