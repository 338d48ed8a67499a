"""The surrogate against truths it can and cannot learn, and a plain refit for leave-one-out."""

import numpy as np
import pytest

from tune_spaces import surrogate
from tune_spaces.evolution import Scored, first_generation, next_generation
from tune_spaces.pareto import normalised_hypervolume
from tune_spaces.space import ScheduleSpace
from tune_spaces.surrogate import ScheduleSurrogate, normal_scores, rank_correlation

PATCHES, DEPTH = 64, 6


def random_schedules(rng: np.random.Generator, count: int) -> list[list[int]]:
    return [
        sorted(rng.integers(1, PATCHES + 1, DEPTH).tolist(), reverse=True) for _ in range(count)
    ]


def damage(schedules: list[list[int]]) -> np.ndarray:
    """A loss with a pair term, not in the surrogate's own family."""
    kept = np.array(schedules) / PATCHES
    single = ((1 - kept) ** 3 * np.arange(1, DEPTH + 1)[::-1]).sum(axis=1)
    return single + 0.5 * ((1 - kept[:, 1:]) * (1 - kept[:, :-1])).sum(axis=1)


def test_it_orders_schedules_it_has_not_seen() -> None:
    rng = np.random.default_rng(0)
    seen, unseen = random_schedules(rng, 80), random_schedules(rng, 200)
    model = ScheduleSurrogate(PATCHES, [96] * 80, seen, -damage(seen))
    predicted = model.predict([96] * 200, unseen)
    assert rank_correlation(predicted, -damage(unseen)) > 0.97
    assert model.reliability > 0.95


def test_it_knows_when_there_is_nothing_to_learn() -> None:
    rng = np.random.default_rng(0)
    seen = random_schedules(rng, 60)
    model = ScheduleSurrogate(PATCHES, [96] * 60, seen, rng.random(60))
    assert abs(model.reliability) < 0.4


def test_widths_are_apart() -> None:
    rng = np.random.default_rng(0)
    seen = random_schedules(rng, 60)
    # At one width more tokens are better, at the other worse.
    truth = np.concatenate([-damage(seen[:30]), damage(seen[30:])])
    model = ScheduleSurrogate(PATCHES, [64] * 30 + [96] * 30, seen, truth)
    few, many = [1] * DEPTH, [PATCHES] * DEPTH
    narrow_few, narrow_many, wide_few, wide_many = model.predict(
        [64, 64, 96, 96], [few, many, few, many]
    )
    assert narrow_many > narrow_few
    assert wide_many < wide_few
    assert model.predict([128], [few])[0] == -np.inf


def test_leave_one_out_is_a_refit_without_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    features, targets = rng.random((20, 4)), rng.random(20)
    monkeypatch.setattr(surrogate, "_PENALTIES", (0.3,))
    _, _, left_out = surrogate._fit(features, targets)
    for row in range(20):
        rest = np.arange(20) != row
        # Ridge with an unpunished intercept, by the normal equations.
        design = np.column_stack([features[rest], np.ones(19)])
        penalty = np.diag([0.3] * 4 + [0.0])
        weights = np.linalg.solve(design.T @ design + penalty, design.T @ targets[rest])
        assert left_out[row] == pytest.approx(features[row] @ weights[:4] + weights[4])


def test_normal_scores_and_rank_correlation_by_hand() -> None:
    assert normal_scores(np.array([5.0, 1.0, 3.0])) == pytest.approx([0.967, -0.967, 0.0], abs=1e-3)
    assert normal_scores(np.array([2.0, 2.0])) == pytest.approx([0.0, 0.0])
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([10.0, 20, 900])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1)
    assert rank_correlation(np.array([1.0, 1, 1]), np.array([3.0, 2, 1])) == 0.0


def test_too_little_to_learn_from_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="96 has 5 scored schedules: at least 12"):
        ScheduleSurrogate(PATCHES, [96] * 5, random_schedules(rng, 5), rng.random(5))
    with pytest.raises(ValueError, match="1 arms, 2 schedules and 3 qualities"):
        ScheduleSurrogate(PATCHES, [96], [[1] * 6] * 2, [0.0] * 3)


def test_with_it_evolution_finds_a_better_front_for_the_same_scores() -> None:
    space = ScheduleSpace(DEPTH, PATCHES, [96], lambda width, kept: sum(kept) / 1e2)
    dense = space.cost(96, space.dense())

    def hypervolume(seed: int, oversample: int) -> float:
        scored: list[Scored] = []
        while len(scored) < 240:
            rng = np.random.default_rng([seed, len(scored)])
            found = (
                next_generation(
                    space, rng, scored, 30, progress=len(scored) / 240, oversample=oversample
                )
                if scored
                else first_generation(space, rng, 30)
            )
            losses = damage([list(candidate.schedule) for candidate in found])
            scored += [Scored(c, -loss) for c, loss in zip(found, losses, strict=True)]
        points = [(entry.candidate.gmacs, np.exp(entry.quality)) for entry in scored]
        return normalised_hypervolume(points, dense)

    with_it = [hypervolume(seed, 6) for seed in range(6)]
    without = [hypervolume(seed, 1) for seed in range(6)]
    assert np.mean(with_it) > np.mean(without) + 0.001
