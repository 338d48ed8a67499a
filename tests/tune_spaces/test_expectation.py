"""What is expected of training, on schedules whose training is a formula."""

import numpy as np
import pytest

from tune_spaces.expectation import TrainedQuality
from tune_spaces.space import ScheduleSpace

SPACE = ScheduleSpace(6, 64, [16, 24], lambda width, schedule: width * sum(schedule) / 1e4)


def guessed(candidate):
    """Falls with the tokens dropped, wherever they are dropped."""
    return 0.95 - 0.35 * (1 - sum(candidate.schedule) / (64 * 6))


def trained(candidate):
    """Worse than that for schedules that keep little to the end, and for the narrow width."""
    late = np.log(64 / candidate.schedule[-1]) / np.log(64)
    odds = np.log(guessed(candidate) / (1 - guessed(candidate)))
    odds += 0.3 - 1.2 * late**2 - 0.4 * (candidate.width == 16)
    return 1 / (1 + np.exp(-odds))


@pytest.mark.parametrize("seed", range(4))
def test_what_was_trained_corrects_what_is_guessed_of_others(seed):
    rng = np.random.default_rng(seed)
    seen, others = SPACE.sample(rng, 24), SPACE.sample(rng, 60)
    noisy = [trained(c) + 0.005 * rng.standard_normal() for c in seen]
    quality = TrainedQuality(64, seen, [guessed(c) for c in seen], noisy)
    guesses = [guessed(c) for c in others]
    truth = np.array([trained(c) for c in others])
    found = quality.predict(others, guesses)
    before = np.sqrt(np.mean((guesses - truth) ** 2))
    after = np.sqrt(np.mean((found - truth) ** 2))
    assert after < before / 3
    again = TrainedQuality(64, seen, [guessed(c) for c in seen], noisy)
    assert again.predict(others, guesses).tolist() == found.tolist()


def test_optimism_adds_most_where_least_is_known():
    rng = np.random.default_rng(0)
    seen = SPACE.sample(rng, 12, width=16)
    quality = TrainedQuality(64, seen, [guessed(c) for c in seen], [trained(c) for c in seen])
    known, unknown = seen[5], SPACE.candidate(24, [64, 64, 64, 2, 2, 2])
    rises = [
        float(quality.predict([c], [0.8], 1.0)[0] - quality.predict([c], [0.8])[0])
        for c in (known, unknown)
    ]
    assert 0 < rises[0] < rises[1]


def test_with_nothing_trained_the_guess_stands():
    quality = TrainedQuality(64, [], [], [])
    candidates = SPACE.sample(np.random.default_rng(0), 3)
    assert quality.predict(candidates, [0.5, 0.6, 0.7], 2.0).tolist() == [0.5, 0.6, 0.7]
    assert quality.predict([], []).tolist() == []


def test_a_share_of_all_or_nothing_is_no_infinity():
    seen = SPACE.sample(np.random.default_rng(0), 3)
    quality = TrainedQuality(64, seen, [0.0, 0.5, 1.0], [1.0, 0.5, 0.0])
    assert np.isfinite(quality.predict(seen, [0.0, 0.5, 1.0])).all()


def test_lengths_that_differ_are_named():
    seen = SPACE.sample(np.random.default_rng(0), 2)
    with pytest.raises(ValueError, match="2 candidates, 1 guesses and 2 qualities"):
        TrainedQuality(64, seen, [0.5], [0.5, 0.6])
