"""Pareto tools against hand-worked cases and brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_spaces import pareto

# (cost, top1): A, B, C are on the front; D is under B; E is dearer than C and no better.
A, B, C, D, E = (1.0, 0.5), (2.0, 0.7), (4.0, 0.8), (3.0, 0.6), (5.0, 0.8)
POINTS = [A, B, C, D, E]


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    """Plain-loop definition: costs no higher, quality no lower, one of them better."""
    no_worse = all(x <= y for x, y in zip(a[:-1], b[:-1], strict=True)) and a[-1] >= b[-1]
    return bool(no_worse and (a != b).any())


def grid_points(num_objectives: int) -> st.SearchStrategy[np.ndarray]:
    """Points on a coarse grid, so that ties and copies are frequent."""
    row = st.tuples(*[st.integers(0, 5)] * num_objectives)
    return st.lists(row, min_size=1, max_size=12).map(lambda rows: np.array(rows, dtype=float))


def test_non_dominated_by_hand() -> None:
    assert pareto.non_dominated(POINTS).tolist() == [True, True, True, False, False]


def test_non_dominated_keeps_copies() -> None:
    assert pareto.non_dominated([A, A, D, B]).tolist() == [True, True, False, True]


@settings(max_examples=60, deadline=None)
@given(points=st.integers(2, 4).flatmap(grid_points))
def test_non_dominated_is_brute_force(points: np.ndarray) -> None:
    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert pareto.non_dominated(points).tolist() == expected


def test_front_ranks_by_hand() -> None:
    # D and E are a second front: neither dominates the other.
    assert pareto.front_ranks(POINTS).tolist() == [0, 0, 0, 1, 1]


def test_hypervolume_by_hand() -> None:
    # Reference (6, 0): A covers 5 wide x 0.5, B adds 4 x 0.2, C adds 2 x 0.1.
    assert pareto.hypervolume(POINTS, (6.0, 0.0)) == pytest.approx(2.5 + 0.8 + 0.2)


def test_hypervolume_of_nothing_and_of_points_beyond_the_reference() -> None:
    assert pareto.hypervolume([], (6.0, 0.0)) == 0.0
    assert pareto.hypervolume([(7.0, 0.9), (1.0, -0.1)], (6.0, 0.0)) == 0.0


@settings(max_examples=40, deadline=None)
@given(points=grid_points(3))
def test_hypervolume_counts_dominated_cells(points: np.ndarray) -> None:
    # On an integer grid the volume is the number of unit cells that some point dominates.
    cells = sum(
        any(p[0] <= i and p[1] <= j and p[2] >= k + 1 for p in points)
        for i in range(6)
        for j in range(6)
        for k in range(6)
    )
    assert pareto.hypervolume(points, (6.0, 6.0, 0.0)) == pytest.approx(cells)


def test_normalised_hypervolume_by_hand() -> None:
    assert pareto.normalised_hypervolume(POINTS, 6.0) == pytest.approx(3.5 / 6)
    # Above chance 0.5: B adds 4 x 0.2 and C 2 x 0.1 of a box of 6 x 0.5.
    assert pareto.normalised_hypervolume(POINTS, 6.0, 0.5) == pytest.approx(1.0 / 3)
    assert pareto.normalised_hypervolume([(0.0, 1.0)], 6.0) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="box is empty"):
        pareto.normalised_hypervolume(POINTS, 0.0)


@pytest.mark.parametrize(
    ("point", "distance"),
    [
        (D, 0.1),  # B is cheaper and 0.1 better
        (E, 0.0),  # C is as good
        (B, 0.0),  # on the front
        ((2.5, 0.75), -0.05),  # above the front at its cost
        ((3.999, 0.7), 0.0),  # C does not count, it costs more
        ((0.5, 0.01), 0.0),  # nothing is as cheap
    ],
)
def test_distance_to_front_by_hand(point: tuple[float, float], distance: float) -> None:
    assert pareto.distance_to_front(point, POINTS) == pytest.approx(distance)


def test_distance_to_front_with_two_costs() -> None:
    front = [(1.0, 9.0, 0.5), (2.0, 3.0, 0.7), (9.0, 1.0, 0.9)]
    assert pareto.distance_to_front((3.0, 5.0, 0.6), front) == pytest.approx(0.1)
    assert pareto.distance_to_front((9.0, 9.0, 0.6), front) == pytest.approx(0.3)


@settings(max_examples=60, deadline=None)
@given(points=grid_points(2))
def test_distance_is_positive_exactly_where_something_cheaper_is_better(
    points: np.ndarray,
) -> None:
    for point in points:
        beaten = any(other[0] <= point[0] and other[1] > point[1] for other in points)
        assert (pareto.distance_to_front(point, points) > 0) == beaten


def test_knee_by_hand() -> None:
    # Scaled: A (0, 0), B (1/3, 2/3), C (1, 1): B is 1/3 above the diagonal.
    assert pareto.knee(POINTS) == 1
    assert pareto.knee([D]) == 0
    assert pareto.knee([C, A]) == 1


def test_spread_by_hand() -> None:
    # Scaled: (0, 0), (0.5, 0), (1, 1).
    assert pareto.spread([(0, 0), (1, 0), (2, 4)]) == pytest.approx([0.5, 0.5, 1.25**0.5])
    assert np.isinf(pareto.spread([A])).all()


@pytest.mark.parametrize("bad", [[(1.0, float("nan"))], [(float("inf"), 0.1)], [1.0, 2.0]])
def test_bad_points_are_refused(bad: list) -> None:
    with pytest.raises(ValueError, match="points"):
        pareto.non_dominated(bad)


def test_reference_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="reference must be 2"):
        pareto.hypervolume(POINTS, (1.0, 2.0, 3.0))


@settings(max_examples=60, deadline=None)
@given(points=st.integers(2, 3).flatmap(grid_points))
def test_spread_is_brute_force(points: np.ndarray) -> None:
    extent = np.ptp(points, axis=0)
    scaled = (points - points.min(axis=0)) / np.where(extent > 0, extent, 1.0)
    for me, alone in enumerate(pareto.spread(points)):
        others = [np.linalg.norm(scaled[me] - p) for i, p in enumerate(scaled) if i != me]
        assert alone == pytest.approx(min(others, default=np.inf))


WORST = (1.0, 0.0)


@pytest.mark.parametrize("seed", range(8))
def test_added_volume_is_the_difference_of_two_hypervolumes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points, known = rng.random((12, 2)) * [1.3, 1], rng.random((seed % 4, 2))
    before = pareto.hypervolume([tuple(row) for row in known], WORST)
    wanted = [pareto.hypervolume([*map(tuple, known), tuple(p)], WORST) - before for p in points]
    assert pareto.added_volume(points, known, WORST).tolist() == pytest.approx(wanted, abs=1e-12)


def test_what_is_dominated_or_beyond_the_reference_adds_nothing() -> None:
    known = [(0.4, 0.5)]
    points = [(0.5, 0.4), (0.4, 0.5), (2.0, 0.9), (0.2, -0.1), (0.2, 0.25)]
    assert pareto.added_volume(points, known, WORST).tolist() == pytest.approx([0, 0, 0, 0, 0.05])


def test_nothing_to_rate_and_what_cannot_be_rated() -> None:
    assert pareto.added_volume([], [], WORST).tolist() == []
    with pytest.raises(ValueError, match="not finite"):
        pareto.added_volume([(0.1, np.nan)], [], WORST)
    with pytest.raises(ValueError, match="reference"):
        pareto.added_volume([(0.1, 0.2)], [], (1.0, 0.0, 0.0))
