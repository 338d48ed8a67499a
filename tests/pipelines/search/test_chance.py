"""A model that knows nothing of the data is told from one that knows a little.

D11 of the field: squeeze worked on at chance level and saved its "best".
"""

import numpy as np
import pytest

from pipelines.errors import UserError
from pipelines.search.chance import check_above_chance, expected_by_chance, other_order

NAMES = [f"class {i}" for i in range(10)]


def labels(rng, n=300, classes=10):
    return rng.integers(0, classes, n)


def knows(rng, truth, share, classes=10):
    """Predictions that are right for a share, drawn for the rest."""
    return np.where(rng.random(len(truth)) < share, truth, rng.integers(0, classes, len(truth)))


def test_random_predictions_are_refused_as_often_as_promised():
    refused = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        truth = labels(rng)
        try:
            check_above_chance(labels(rng), truth, NAMES)
        except UserError:
            refused += 1
    assert refused >= 194  # one in a hundred looks significant


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("n", [64, 300, 2000])
def test_a_model_that_learned_something_passes(n, share):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        truth = labels(rng, n)
        if share > 0.25 or n > 64:
            check_above_chance(knows(rng, truth, share), truth, NAMES)


def test_always_naming_the_largest_class_is_chance_and_balance_is_not():
    # Neighbour: classes of unequal size, where one in ten is no measure.
    rng = np.random.default_rng(0)
    truth = np.where(rng.random(400) < 0.9, 0, 1)
    constant = np.zeros(400, int)
    assert expected_by_chance(constant, truth, 2) == pytest.approx((truth == 0).mean())
    with pytest.raises(UserError, match="no better than chance"):
        check_above_chance(constant, truth, ["a", "b"])
    # Right for 80 % of either class: fewer right than the constant, and yet it knows the data.
    balanced = np.where(rng.random(400) < 0.8, truth, 1 - truth)
    assert (balanced == truth).mean() < (constant == truth).mean()
    check_above_chance(balanced, truth, ["a", "b"])


@pytest.mark.parametrize(
    "order",
    [
        [
            1,
            2,
            3,
            4,
            5,
            6,
            7,
            8,
            9,
            0,
        ],  # all moved, by one: what a class too many at the front does
        sorted(range(10), key=lambda i: str(i + 1)),  # text order of 1…10: 1, 10, 2, 3, …
        [1, 0, 2, 3, 4, 5, 6, 7, 8, 9],  # two swapped: still 80 % right
        list(range(9, -1, -1)),
    ],
)
def test_classes_in_another_order_are_found(order):
    rng = np.random.default_rng(1)
    truth = labels(rng)
    predicted = np.array(order)[knows(rng, truth, 0.95)]
    with pytest.raises(UserError, match=r"with the order of the classes changed.*--class-map"):
        check_above_chance(predicted, truth, NAMES)
    share, true = other_order(predicted, truth, 10)
    assert share == pytest.approx(
        (knows(np.random.default_rng(1), truth, 0.95) == truth).mean(), abs=0.06
    )
    assert [true[c] for c in order] == list(range(10))


def test_classes_that_a_model_mixes_up_are_no_other_order():
    rng = np.random.default_rng(2)
    truth = labels(rng, 2000)
    predicted = knows(rng, truth, 0.9)
    both = (truth < 2) & (
        rng.random(2000) < 0.6
    )  # 0 and 1 taken for each other more often than not
    predicted = np.where(both, 1 - truth, predicted)
    assert other_order(predicted, truth, 10) is None
    # A poor model of many classes, few images: the best renaming of chance must not look better.
    for seed in range(50):
        rng = np.random.default_rng(seed)
        truth = labels(rng, 200, 100)
        assert other_order(knows(rng, truth, 0.1, 100), truth, 100) is None
