"""The rule of Pareto halving on rungs worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_spaces.halving import Entry, HalvingRule, lacks
from tune_spaces.pareto import distance_to_front


def make_rung(**points: tuple[float, float]) -> dict[str, Entry]:
    return {name: Entry(cost, quality) for name, (cost, quality) in points.items()}


def test_the_only_trial_goes_on_however_bad() -> None:
    assert HalvingRule().judge("a", make_rung(a=(1.0, 0.0))).kept


def test_below_the_front_at_its_own_cost_is_stopped() -> None:
    verdict = HalvingRule().judge("b", make_rung(a=(1.0, 0.8), b=(2.0, 0.7)))
    assert not verdict.kept
    assert verdict.lack == pytest.approx(0.1)
    assert "0.1 below the front at its cost; rank 2 of 2, 1 go on" in verdict.reason


def test_a_cheap_trial_is_not_stopped_for_being_less_accurate_than_a_dear_one() -> None:
    verdict = HalvingRule().judge("cheap", make_rung(dear=(9.0, 0.9), mid=(5, 0.8), cheap=(1, 0.2)))
    assert verdict.kept
    assert verdict.lack == 0.0


def test_the_noise_margin_forgives_a_small_lack() -> None:
    rung = make_rung(a=(1.0, 0.8), b=(2.0, 0.79))
    assert not HalvingRule().judge("b", rung).kept
    assert HalvingRule(noise=0.02).judge("b", rung).kept


def test_the_quota_lets_the_best_of_those_below_the_front_go_on() -> None:
    # Lacks: front 0, near 0.1, far 0.5. Half of three, rounded up, is two.
    rung = make_rung(front=(1.0, 0.9), near=(2.0, 0.8), far=(3.0, 0.4))
    assert HalvingRule().judge("near", rung).kept
    assert not HalvingRule().judge("far", rung).kept


def test_a_stopped_trial_still_sets_the_bar() -> None:
    rung = make_rung(a=(1.0, 0.8), b=(2.0, 0.7))
    rung["a"] = Entry(1.0, 0.8, kept=False)
    assert not HalvingRule().judge("b", rung).kept


def test_a_twin_on_the_front_is_stopped_only_beyond_the_quota() -> None:
    points = {"a": (1.0, 0.1), "b": (5.0, 0.5), "c": (9.0, 0.9), "twin": (5.01, 0.5)}
    # `b` and `twin` are the least alone of four, and the quota is two.
    verdict = HalvingRule(noise=0.001).judge("twin", make_rung(**points))
    assert not verdict.kept
    assert "b stands beside it" in verdict.reason
    assert HalvingRule(min_spread=0.0).judge("twin", make_rung(**points)).kept
    # As good as its neighbour is not enough where there is room for both.
    assert HalvingRule(keep=1.0).judge("twin", make_rung(**points)).kept
    # A twin that is better than its neighbour replaces nothing: it goes on.
    points["twin"] = (5.01, 0.501)
    assert HalvingRule(noise=0.01).judge("twin", make_rung(**points)).kept


def test_a_diverged_trial_is_stopped_and_sets_no_bar() -> None:
    rung = make_rung(b=(2.0, float("nan")), c=(3.0, 0.4))
    assert not HalvingRule().judge("b", rung).kept
    # There is nobody left to compare `c` with.
    assert HalvingRule().judge("c", rung).reason == "too few others to compare with"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_lacks_is_the_distance_to_the_front(rows: list[tuple[int, int]]) -> None:
    points = np.array(rows, dtype=float)
    assert lacks(points) == pytest.approx([distance_to_front(point, points) for point in points])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=20),
    st.sampled_from([0.25, 0.5, 0.8]),
)
def test_at_least_the_quota_and_the_whole_front_go_on(
    rows: list[tuple[int, int]], keep: float
) -> None:
    rung = {str(i): Entry(float(c), float(q)) for i, (c, q) in enumerate(rows)}
    rule = HalvingRule(keep=keep, min_spread=0.0)
    verdicts = [rule.judge(name, rung) for name in rung]
    assert sum(v.kept for v in verdicts) >= np.ceil(keep * len(rows))
    assert all(v.kept for v in verdicts if v.lack <= 0)


@pytest.mark.parametrize("options", [{"keep": 0.0}, {"noise": -1.0}, {"min_spread": -0.1}])
def test_senseless_rules_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"keep|noise"):
        HalvingRule(**options)
