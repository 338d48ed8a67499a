import numpy as np
import pytest
from scipy.stats import t, ttest_rel

from tune_spaces.racing import beaten, looks, student_quantile


def test_looks_double_and_end_with_all():
    assert looks(287) == [32, 64, 128, 287]
    assert looks(10_000) == [313, 626, 1252, 2504, 5008, 10_000]
    assert looks(60) == [32, 60] and looks(20) == [20]
    with pytest.raises(ValueError, match="at least 1"):
        looks(0)


@pytest.mark.parametrize("freedom", [31, 100, 2000])
@pytest.mark.parametrize("error", [0.05, 1e-4, 1e-7])
def test_the_quantile_is_students(freedom, error):
    assert student_quantile(1 - error, freedom) == pytest.approx(
        t.ppf(1 - error, freedom), rel=2e-3
    )


def test_it_is_the_paired_test_but_for_the_one_unseen_image():
    """A little on either side of where scipy's test of the same values turns."""
    rng = np.random.default_rng(0)
    rival = rng.gamma(1.0, 1.0, 200)
    noise = rng.normal(0.0, 0.1, 200)
    error = 1e-3
    for shift in np.linspace(0.0, 0.1, 41):
        worse = rival + shift + noise
        more = np.append(worse - rival, -np.abs(worse - rival).max())
        result = ttest_rel(more, np.zeros(201), alternative="greater")
        found = beaten(
            np.array([1.0]), worse[None], np.array([1.0]), rival[None], images=10**9, error=error
        )
        if abs(np.log(result.pvalue / error)) > 0.1:
            assert bool(found[0]) == (result.pvalue < error)


def losses_of(*shifts, seed=0, images=100):
    noise = np.random.default_rng(seed).normal(0.0, 0.01, (len(shifts), images))
    return np.array(shifts)[:, None] + noise + 1.0


def test_only_what_costs_no_more_is_a_rival():
    losses = losses_of(0.0, 0.5, 0.5, 0.2)
    costs = np.array([1.0, 1.0, 0.5, 2.0])
    nobody = np.zeros(0), np.zeros((0, 100))
    found = beaten(costs, losses, *nobody, images=1000, error=1e-3)
    assert found.tolist() == [False, True, False, True]
    veteran = np.array([0.4]), losses_of(0.1, seed=1)
    found = beaten(costs, losses, *veteran, images=1000, error=1e-3)
    assert found.tolist() == [False, True, True, True]


def test_a_tolerance_counts_against_those_known_before_alone():
    losses = losses_of(0.0, 0.0)
    costs = np.array([1.0, 2.0])
    nobody = np.zeros(0), np.zeros((0, 100))
    settings = {"images": 1000, "error": 1e-3, "tolerance": 0.1}
    assert not beaten(costs, losses, *nobody, **settings).any()
    veteran = np.array([1.0]), losses_of(0.0, seed=2)
    assert beaten(costs, losses, *veteran, **settings).all()
    assert not beaten(losses_of(-0.2)[:, 0] * 0 + 1, losses_of(-0.2), *veteran, **settings).any()


def test_a_rare_image_that_speaks_for_the_rival_is_thought_of():
    """Slightly worse on all images seen but for one, where it is better by far."""
    rng = np.random.default_rng(3)
    rival = rng.gamma(1.0, 1.0, 64)
    worse = rival + 0.02 + rng.normal(0.0, 0.01, 64)
    args = np.array([1.0]), np.array([0.9]), rival[None]
    assert beaten(args[0], worse[None], *args[1:], images=512, error=1e-4)[0]
    worse[5] = rival[5] - 1.0
    assert not beaten(args[0], worse[None], *args[1:], images=512, error=1e-4)[0]


def test_when_all_images_are_seen_the_mean_decides():
    losses = losses_of(0.0, 0.003, images=400)
    found = beaten(
        np.array([1.0, 2.0]), losses, np.zeros(0), np.zeros((0, 400)), images=400, error=1e-9
    )
    assert found.tolist() == [False, True]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="costs for losses"):
        beaten(np.ones(2), np.ones((3, 40)), np.ones(1), np.ones((1, 40)), images=80, error=0.1)
    with pytest.raises(ValueError, match="two images"):
        beaten(np.ones(2), np.ones((2, 1)), np.ones(1), np.ones((1, 1)), images=80, error=0.1)
