"""What candidates add to a front, against moocore's hypervolume with each of them and without."""

import numpy as np
import pytest

from tune_spaces.pareto import hypervolume
from tune_spaces.volume import added_volume

WORST = (1.0, 0.0)


@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_difference_of_two_hypervolumes(seed):
    rng = np.random.default_rng(seed)
    points, known = rng.random((12, 2)) * [1.3, 1], rng.random((seed % 4, 2))
    before = hypervolume([tuple(row) for row in known], WORST)
    wanted = [hypervolume([*map(tuple, known), tuple(p)], WORST) - before for p in points]
    assert added_volume(points, known, WORST).tolist() == pytest.approx(wanted, abs=1e-12)


def test_what_is_dominated_or_beyond_the_reference_adds_nothing():
    known = [(0.4, 0.5)]
    points = [(0.5, 0.4), (0.4, 0.5), (2.0, 0.9), (0.2, -0.1), (0.2, 0.25)]
    assert added_volume(points, known, WORST).tolist() == pytest.approx([0, 0, 0, 0, 0.05])


def test_nothing_to_rate_and_what_cannot_be_rated():
    assert added_volume([], [], WORST).tolist() == []
    with pytest.raises(ValueError, match="not finite"):
        added_volume([(0.1, np.nan)], [], WORST)
    with pytest.raises(ValueError, match="reference"):
        added_volume([(0.1, 0.2)], [], (1.0, 0.0, 0.0))
