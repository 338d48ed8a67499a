"""Schedules: what is accepted, what is refused and in which words."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenpool as tp


def test_reads_and_writes_the_same_text():
    schedule = tp.Schedule.parse(" 49, 40 ,33,33,1")
    assert schedule == (49, 40, 33, 33, 1)
    assert str(schedule) == "49,40,33,33,1"
    assert tp.Schedule.parse(str(schedule)) == schedule
    assert eval(repr(schedule), {"Schedule": tp.Schedule}) == schedule


def test_is_a_hashable_immutable_sequence():
    schedule = tp.Schedule(np.array([5, 4, 4]))
    assert {schedule: 1}[tp.Schedule((5, 4, 4))] == 1
    assert list(schedule) == [5, 4, 4] and len(schedule) == 3 and schedule[-1] == 4
    assert all(type(count) is int for count in schedule)
    with pytest.raises(TypeError):
        schedule[0] = 3  # type: ignore[index]
    for twin in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert twin == schedule and type(twin) is tp.Schedule


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((49, 40, 40, 52), "layer 4 keeps 52 tokens but layer 3 keeps only 40"),
        ((49, 0), "layer 2 keeps 0 tokens: at least 1"),
        ((49, 39.5), "layer 2 keeps 39.5 tokens: a whole number"),
        ((), "one count per block"),
    ],
)
def test_a_bad_schedule_is_refused_by_layer_and_counts(counts, message):
    with pytest.raises(ValueError, match=message):
        tp.Schedule(counts)


def test_unreadable_text_is_refused_by_layer():
    with pytest.raises(ValueError, match="'4O' at layer 2"):
        tp.Schedule.parse("49,4O")


@given(st.integers(1, 24), st.integers(1, 1000), st.floats(0.01, 1.0))
def test_constant_rate_is_valid_and_near_its_rate(depth, patches, rate):
    schedule = tp.Schedule.constant_rate(depth, patches, rate)
    assert len(schedule) == depth
    for layer, count in enumerate(schedule, start=1):
        assert count == 1 or abs(count - patches * rate**layer) <= 0.5


def test_constant_rate_refuses_rates_that_are_none():
    for rate in (0.0, -0.5, 1.2, float("nan")):
        with pytest.raises(ValueError, match="keep rate"):
            tp.Schedule.constant_rate(3, 49, rate)


def test_dense_keeps_everything():
    assert tp.Schedule.dense(3, 49) == (49, 49, 49)
