"""What pooling saves at equal accuracy on val, against figures worked out by hand."""

import ledgers
import pytest

from pipelines.results.front import build_front
from pipelines.results.matched import matched
from pipelines.results.page import summary
from pipelines.search.state import SearchState, fold

VAL = {"t003": 0.915, "t002": 0.95, "t001": 0.961}


@pytest.fixture
def state() -> SearchState:
    state = fold("digits", ledgers.events())
    for name, top1 in VAL.items():
        state.trials[name].top1_val = top1
    state.base(64).top1_val = 0.91
    return state


def test_the_cheapest_that_is_as_good_counts(state):
    narrow, wide = matched(build_front(state))
    assert (narrow.plain.point_id, narrow.pooled and narrow.pooled.point_id) == ("dense-64", "t003")
    assert narrow.saved == pytest.approx(1 - 0.014 / 0.021)
    assert wide.pooled is None and wide.saved is None  # 97.2 % on val, the best pooled has 96.1
    assert "t003 of width 64 (91.50 %) is as good as plain width 64" in narrow.text
    assert narrow.text in summary(build_front(state))


def test_a_plain_model_that_was_trained_on_is_the_one_to_match(state):
    """Else pooled models would be compared with one that had fewer epochs than they."""
    rows = [
        ("trial_created", {"width": 64, "num_heads": 2, "schedule": [64] * 6, "method": "wkmeans",
                           "gmacs": 0.021, "keep_rate": 1.0}),
        ("trial_report", {"report": {"epoch": 3, "top1_minival": 0.94, "device_seconds": 1.0}}),
        ("trial_done", {"checkpoint": "/nowhere", "top1_minival": 0.94}),
        ("published", {"top1_val": 0.93}),
    ]  # fmt: skip
    for kind, fields in rows:
        state.apply({"event": kind, "time": state.updated + 1, "trial_id": "c000", **fields})
    narrow = matched(build_front(state))[0]
    assert (narrow.plain.point_id, narrow.pooled and narrow.pooled.point_id) == ("c000", "t002")
    # And a constant keep-rate under 1 is no plain model.
    state.trials["c000"].keep_rate = 0.9
    assert matched(build_front(state))[0].plain.point_id == "dense-64"


def test_without_val_there_is_nothing_to_say():
    state = fold("digits", ledgers.events(complete=False))
    assert matched(build_front(state)) == []
