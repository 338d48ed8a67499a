"""What is expected and hoped of scored candidates is the same however often one asked before."""

import numpy as np
import pytest

from tune_spaces.candidate import Untrained
from tune_spaces.expectation import TrainedQuality
from tune_spaces.outlook import DenseModel, Outlook, Prices, Trained
from tune_spaces.scores import Scores
from tune_spaces.space import ScheduleSpace

SPACE = ScheduleSpace(6, 64, [16, 24], lambda width, schedule: width * (sum(schedule) + 9) / 1e4)
DENSE = [DenseModel(w, SPACE.cost(w, SPACE.dense()), 0.9, 0.9) for w in (16, 24)]
CANDIDATES = list({c.key: c for c in SPACE.sample(np.random.default_rng(0), 420)}.values())[:400]


def make_outlook():
    return Outlook(SPACE, DENSE, Prices(1, 3, images=100, measured=10))


def make_trained(count):
    rng = np.random.default_rng(1)
    return [
        Trained(c, 0.8, 0.75 + 0.2 * sum(c.schedule) / 400 + 0.01 * rng.standard_normal())
        for c in CANDIDATES[:count]
    ]


def make_scores(outlook):
    scores = Scores(outlook, DENSE)
    scores.rows += [
        Untrained(c, 0.3 + 0.5 * sum(c.schedule) / 400, 2 - sum(c.schedule) / 400)
        for c in CANDIDATES
    ]
    return scores


def test_expectations_are_the_same_whether_one_asked_at_each_training_or_only_now():
    trained, others = make_trained(27), CANDIDATES[100:120]
    steady, late = make_outlook(), make_outlook()
    for count in range(1, 27):
        steady.expected(others, [0.8] * 20, trained[:count])
    found = late.expected(others, [0.8] * 20, trained)
    assert steady.expected(others, [0.8] * 20, trained) == found
    # 27 are taken with the scales that were fitted to the first 26.
    before = make_outlook()
    before.expected(others, [0.8] * 20, trained[:26])
    assert before.expected(others, [0.8] * 20, trained) == found


def test_scales_are_fitted_at_each_tenth_more_and_not_at_each_training(monkeypatch):
    fits = []

    class Counted(TrainedQuality):
        def __init__(self, patches, trained, guesses, qualities, kernel=None):
            if kernel is None and trained:
                fits.append(len(trained))
            super().__init__(patches, trained, guesses, qualities, kernel)

    monkeypatch.setattr("tune_spaces.outlook.TrainedQuality", Counted)
    trained, outlook = make_trained(44), make_outlook()
    for count in range(len(trained) + 1):
        outlook.expected(CANDIDATES[100:102], [0.8, 0.8], trained[:count])
    assert fits == [*range(1, 21), 22, 24, 26, 28, 30, 33, 36, 39, 42]


@pytest.mark.parametrize("num_begun", [0, 5])
def test_hopes_are_those_of_what_was_not_begun_to_the_last_bit(num_begun):
    trained = make_trained(24)
    begun = {c.key for c in CANDIDATES[30 : 30 + num_begun]}
    asked_before, fresh = make_scores(make_outlook()), make_scores(make_outlook())
    asked_before.untried(trained[:20], set())
    asked_before.untried(trained, {c.key for c in CANDIDATES[40:60]})
    candidates, hopes = asked_before.untried(trained, begun)
    assert fresh.untried(trained, begun) == (candidates, hopes)
    keys = {c.key for c in candidates}
    dense = {model.width: model.gmacs for model in DENSE}
    able = {c.key for c in CANDIDATES[24:] if c.gmacs < dense[c.width]}
    assert keys == able - begun and len(keys) == len(candidates)
    # What is hoped for is above what is expected, which is that of each alone.
    expected = {s.candidate.key: s.quality for s in fresh.expected(trained)}
    assert all(hope > expected[c.key] for c, hope in zip(candidates, hopes, strict=True))
    guesses = [fresh.guess(c) for c in candidates[:3]]
    alone = make_outlook().expected(candidates[:3], guesses, trained, 0.5)
    assert hopes[:3] == pytest.approx(alone, rel=1e-9)


def test_before_any_training_all_is_as_its_loss_says_and_one_never_scored_as_its_dense_model():
    scores = make_scores(make_outlook())
    assert [s.quality for s in scores.expected([])] == [-row.loss for row in scores.rows]
    unknown = SPACE.candidate(16, [64, 64, 64, 64, 1, 1])
    assert unknown.key not in {c.key for c in CANDIDATES}
    assert scores.guess(unknown) == 0.9 and scores.guess(unknown, 0.4) == 0.4
