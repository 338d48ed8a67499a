"""Whether a model knows its data at all: told before anything is measured on its predictions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom

from pipelines.errors import UserError

# How rarely a model that knows nothing may look as if it did.
_SIGNIFICANCE = 0.01
# How much oftener a class must be another one than itself to be called misplaced.
_CLEARLY = 5
_MOST_CLASSES = 4000  # a matrix of all pairs
_REASONS = (
    "likely its classes stand in another order (--class-map), its images were normalised in "
    "another way, or it was trained on other data"
)
Labels = NDArray[np.int64]


def check_above_chance(predicted: Labels, labels: Labels, classes: Sequence[str]) -> None:
    """Refuses a model whose predictions have nothing to do with the labels, or mean other classes.

    Chance is what the same predictions would score on labels they do not depend on: a model that
    always names the largest class is at chance however often it is right.

    Args:
        predicted: `[n]` the class of each image by the model.
        labels: `[n]` the true one.
        classes: names.

    Raises:
        UserError: the model is at chance, or right once its classes are put into another order.
    """
    count, images = int((predicted == labels).sum()), len(labels)
    chance = expected_by_chance(predicted, labels, len(classes))
    seen = f"top-1 on {images} images of minival is {count / images:.1%}"
    swapped = other_order(predicted, labels, len(classes))
    if swapped is not None:
        share, true = swapped
        wrong = next(i for i, t in enumerate(true) if i != t and (predicted == i).any())
        raise UserError(
            f"{seen}, but {share:.1%} with the order of the classes changed: it names "
            f"{classes[wrong]!r} where the data says {classes[true[wrong]]!r}; give --class-map "
            "FILE with the data's class names in the model's order",
            exit_code=1,
        )
    if binom.sf(count - 1, images, chance) > _SIGNIFICANCE:
        raise UserError(f"{seen}, no better than chance ({chance:.1%}): {_REASONS}", exit_code=1)


def expected_by_chance(predicted: Labels, labels: Labels, num_classes: int) -> float:
    """The share that predictions would have right, were they drawn without looking (Cohen, 1960).

    At least one in so many classes.
    """
    shares = [np.bincount(x, minlength=num_classes) / len(labels) for x in (predicted, labels)]
    return max(1 / num_classes, float(shares[0] @ shares[1]))


def other_order(
    predicted: Labels, labels: Labels, num_classes: int
) -> tuple[float, list[int]] | None:
    """A renaming of the classes under which a model is clearly better, found and tried on halves.

    The best assignment of predicted to true classes on one half of the images is scored on the
    other, and the other way round, so that chance alone finds none.

    Returns:
        Its top-1 and, for each predicted class, the true one; None if there is no such order.
    """
    if num_classes > _MOST_CLASSES:
        return None
    order = np.random.default_rng(0).permutation(len(labels))
    halves = order[::2], order[1::2]
    renamed = np.empty_like(predicted)
    for fit, tried in (halves, halves[::-1]):
        renamed[tried] = _assignment(predicted[fit], labels[fit], num_classes)[predicted[tried]]
    # Sign test on the images that one of the two has right and the other wrong.
    own, other = predicted == labels, renamed == labels
    better, worse = int((other & ~own).sum()), int((own & ~other).sum())
    if binom.sf(better - 1, better + worse, 0.5) > _SIGNIFICANCE**2:
        return None
    true = _assignment(predicted, labels, num_classes)
    moved = true[predicted] != predicted
    there, here = (true[predicted] == labels)[moved].sum(), own[moved].sum()
    if there < _CLEARLY * here or 2 * there < moved.sum():
        return None  # two classes that are mixed up are a model's own fault
    return float((true[predicted] == labels).mean()), [int(t) for t in true]


def _assignment(predicted: Labels, labels: Labels, num_classes: int) -> Labels:
    """For each predicted class the true one, each once, that makes most images right."""
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (predicted, labels), 1)
    counts[np.arange(num_classes), np.arange(num_classes)] += 1e-3  # ties stay as they are
    _, true = linear_sum_assignment(counts, maximize=True)
    return np.asarray(true, np.int64)
