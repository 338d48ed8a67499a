"""The order of candidates, against trying every one with moocore's hypervolume."""

import numpy as np
import pytest

from tune_spaces.pareto import hypervolume
from tune_spaces.volume import by_volume

WORST = (1.0, 0.0)


@pytest.mark.parametrize("seed", range(8))
def test_each_next_one_adds_most_to_those_before(seed):
    rng = np.random.default_rng(seed)
    points, known = rng.random((12, 2)) * [1.3, 1], rng.random((seed % 4, 2))
    order = by_volume(points, known, WORST)
    assert sorted(order) == list(range(12))
    chosen = [tuple(row) for row in known]
    for place, index in enumerate(order):
        before = hypervolume(chosen, WORST)
        gains = [hypervolume([*chosen, tuple(p)], WORST) - before for p in points[order[place:]]]
        if max(gains) < 1e-12:
            break  # nothing more is to be had
        assert gains[0] == pytest.approx(max(gains), abs=1e-12)
        chosen.append(tuple(points[index]))


def test_what_adds_nothing_comes_last_but_comes():
    points = [(0.5, 0.4), (0.4, 0.5), (0.45, 0.45), (2.0, 0.9)]
    assert by_volume(points, [], WORST) == [1, 2, 0, 3]


def test_nothing_to_order_and_what_cannot_be_ordered():
    assert by_volume([], [], WORST) == []
    with pytest.raises(ValueError, match="not finite"):
        by_volume([(0.1, np.nan)], [], WORST)
    with pytest.raises(ValueError, match="reference"):
        by_volume([(0.1, 0.2)], [], (1.0, 0.0, 0.0))
