"""A rung that carries things along says what the rule says that looks at everything."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_spaces.halving import Entry, HalvingRule
from tune_spaces.rung import Rung


def judged_whole(rule: HalvingRule, points: list[tuple[float, float]]) -> list:
    """The verdicts of the rule itself, which looks at the whole rung every time."""
    entries: dict[str, Entry] = {}
    verdicts = []
    for number, (cost, quality) in enumerate(points):
        name = str(number)
        entries[name] = Entry((cost,), (quality,))
        verdict = rule.judge(name, entries)
        entries[name] = Entry((cost,), (quality,), verdict.kept)
        verdicts.append(verdict)
    return verdicts


def judged_by_rung(rule: HalvingRule, points: list[tuple[float, float]]) -> list:
    rung = Rung(rule)
    return [rung.judge(str(n), Entry((c,), (q,))) for n, (c, q) in enumerate(points)]


QUALITY = st.one_of(st.integers(0, 9).map(float), st.just(float("nan")))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9).map(float), QUALITY), max_size=40),
    st.sampled_from([0.25, 0.5, 0.9]),
    st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    st.sampled_from([0.0, 0.2, 0.5]),
    st.sampled_from([1, 3]),
)
def test_verdicts_on_a_coarse_grid_full_of_ties(points, keep, noise, min_spread, min_peers):
    rule = HalvingRule(keep, (noise,), min_spread, min_peers)
    assert judged_by_rung(rule, points) == judged_whole(rule, points)


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.2])
@pytest.mark.parametrize("shape", ["cloud", "curve", "rising"])
def test_verdicts_on_four_hundred_points(noise, shape):
    rng = np.random.default_rng(0)
    cost = rng.random(400)
    quality = {
        "cloud": rng.random(400),
        "curve": np.sqrt(cost),  # everybody is on the front
        "rising": np.sqrt(cost) + np.arange(400) / 100,  # later trials beat all earlier ones
    }[shape]
    points = list(zip(cost.tolist(), quality.tolist(), strict=True))
    rule = HalvingRule(0.5, (noise,), 0.02, 1)
    assert judged_by_rung(rule, points) == judged_whole(rule, points)


def test_it_reads_as_a_mapping_and_counts_who_went_on():
    rung = Rung(HalvingRule())
    rung.judge("a", Entry((1.0,), (0.8,)))
    rung.judge("b", Entry((2.0,), (0.7,)))
    assert dict(rung) == {"a": Entry((1.0,), (0.8,)), "b": Entry((2.0,), (0.7,), kept=False)}
    assert (len(rung), rung.num_kept) == (2, 1)
    rung.add("a", Entry((1.0,), (0.6,), kept=False))  # known better than before
    assert (list(rung), rung.num_kept) == (["a", "b"], 0)
    assert rung.judge("c", Entry((2.0,), (0.65,))) == HalvingRule().judge(
        "c", dict(rung) | {"c": Entry((2.0,), (0.65,))}
    )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 9)), max_size=40),
    st.sampled_from([0.0, 1.0, 3.0]),
    st.sampled_from([1, 2]),
)
def test_several_costs_and_several_qualities(rows, noise, num_costs):
    rule = HalvingRule(0.5, (noise,) * (3 - num_costs), 0.2, 1)
    rung, entries = Rung(rule), {}
    for number, row in enumerate(rows):
        values = tuple(float(value) for value in row)
        entry = Entry(values[:num_costs], values[num_costs:])
        entries[str(number)] = entry
        verdict = rule.judge(str(number), entries)
        assert rung.judge(str(number), entry) == verdict
        entries[str(number)] = Entry(entry.costs, entry.qualities, verdict.kept)


@pytest.mark.parametrize(("num_costs", "trials"), [(1, 20_000), (2, 3_000)])
def test_a_verdict_stays_quick_at_many_trials(num_costs, trials):
    rng = np.random.default_rng(0)
    rung = Rung(HalvingRule(0.5, (0.01,)))
    cost = rng.random((trials + 100, num_costs))
    quality = np.sqrt(cost[:, 0]) - 0.1 * rng.random(trials + 100)
    entries = [Entry(tuple(c), (q,)) for c, q in zip(cost.tolist(), quality.tolist(), strict=True)]
    for number, entry in enumerate(entries[:trials]):
        rung.judge(str(number), entry)
    start = time.thread_time()
    for number, entry in enumerate(entries[trials:]):
        rung.judge(f"late-{number}", entry)
    assert (time.thread_time() - start) / 100 < 0.005
