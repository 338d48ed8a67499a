"""A cheap stand-in for scoring: predicts a schedule's quality from those scored already.

Ridge regression on what a schedule keeps: per layer the log keep-rate against the dense count and
its square, and the products of neighbouring layers, since what one layer drops the next one
cannot. Each arm (a width, or a width with a method) has its own model. Qualities go in as normal
scores of their ranks: only the order of schedules matters, and the loss of schedules that keep
almost nothing has no bounds.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata, spearmanr
from sklearn.linear_model import RidgeCV

_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
LEAST_PER_ARM = 12


class ScheduleSurrogate:
    """Predicts qualities of schedules, as normal scores among those it was fitted to.

    Args:
        patches: the patch tokens that enter the first block.
        arms: what each scored candidate shares a model with `[n]`: its width, say.
        schedules: the patch tokens each keeps after each block `[n, depth]`.
        qualities: the quality of each `[n]`; more is better.

    Attributes:
        scores: the normal scores of the candidates it was fitted to `[n]`.
        reliability: the rank correlation (Spearman) of leave-one-out predictions with the truth,
            over all arms; 1 is perfect, 0 is useless.

    Raises:
        ValueError: if lengths differ, or an arm has too few candidates to learn from.
    """

    def __init__(
        self,
        patches: int,
        arms: Sequence[Hashable],
        schedules: Sequence[Sequence[int]],
        qualities: Sequence[float],
    ) -> None:
        if not len(arms) == len(schedules) == len(qualities):
            raise ValueError(
                f"{len(arms)} arms, {len(schedules)} schedules and {len(qualities)} qualities"
            )
        self._patches = patches
        self.scores = normal_scores(np.asarray(qualities, dtype=np.float64))
        features = self._features(schedules)
        left_out = np.empty(len(features))
        self._models: dict[Hashable, tuple[NDArray[np.float64], float]] = {}
        for arm in dict.fromkeys(arms):
            mine = _where(arms, arm)
            if mine.sum() < LEAST_PER_ARM:
                raise ValueError(
                    f"{arm} has {mine.sum()} scored schedules: at least {LEAST_PER_ARM} are needed"
                )
            scale = np.maximum(np.abs(features[mine]).max(axis=0), 1e-9)
            weights, mean, predicted = _fit(features[mine] / scale, self.scores[mine])
            self._models[arm] = (weights / scale, mean)
            left_out[mine] = predicted
        self.reliability = rank_correlation(left_out, self.scores)

    def predict(
        self, arms: Sequence[Hashable], schedules: Sequence[Sequence[int]]
    ) -> NDArray[np.float64]:
        """Normal scores expected of schedules; -inf for an arm that was never scored."""
        features = self._features(schedules)
        found = np.full(len(features), -np.inf)
        for arm, (weights, mean) in self._models.items():
            mine = _where(arms, arm)
            found[mine] = features[mine] @ weights + mean
        return found

    def _features(self, schedules: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        kept = np.log(np.asarray(schedules, dtype=np.float64) / self._patches)
        return np.concatenate([kept, kept**2, kept[:, 1:] * kept[:, :-1]], axis=1)


def _where(arms: Sequence[Hashable], wanted: Hashable) -> NDArray[np.bool_]:
    """`[n]`; an arm may be a tuple, which numpy would take apart."""
    return np.array([arm == wanted for arm in arms], dtype=bool)


def normal_scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each value's rank as a quantile of the standard normal; equal values get equal scores."""
    scores: NDArray[np.float64] = norm.ppf((rankdata(values) - 0.5) / len(values))
    return scores


def rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Spearman's ρ; 0 where one of the two does not vary."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(spearmanr(first, second).statistic)


def _fit(
    features: NDArray[np.float64], targets: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
    """Ridge regression with the penalty that predicts best with each row left out in turn.

    Returns:
        Weights `[f]`, intercept, and the left-out predictions `[n]`.
    """
    ridge = RidgeCV([*_PENALTIES], scoring="neg_mean_squared_error", store_cv_results=True)
    ridge.fit(features, targets)
    left_out = ridge.cv_results_[:, _PENALTIES.index(ridge.alpha_)]
    return ridge.coef_, float(ridge.intercept_), left_out
