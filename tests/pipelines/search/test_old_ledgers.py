"""Searches that earlier versions began: they go on, or one line says how they are finished."""

import copy
from pathlib import Path

import ledgers
import pytest

from pipelines.config_file import load_config
from pipelines.errors import UserError
from pipelines.results.front import build_front
from pipelines.search.old_ledgers import recorded_config
from pipelines.search.runner import _check_same
from pipelines.search.state import fold

PRESET = Path(__file__).parents[3] / "tune_spaces/presets/digits.yaml"
TOO_DIFFERENT = r"search digits was begun by a version .* too different \(.*\): finish it with that"


def begun(values):
    """The state of a search whose ledger has this configuration, and nothing that came later."""
    created = ledgers.events()[0] | {"config": values}
    return fold("digits", [created])


def test_a_search_begun_before_a_setting_existed_goes_on():
    config = load_config(PRESET)
    old = config.resolved()
    del old["finals"]["train"]["layer_decay"], old["publish"], old["budget"]
    _check_same(begun(old), config)
    with pytest.raises(UserError, match=r"finals\.trials: 6 → 9"):
        _check_same(begun(old), load_config(PRESET, ["finals.trials=9"]))


@pytest.mark.parametrize(
    "place", ["gone", "data.gone", "finals.train.augment.gone", "space.widths.0.gone"]
)
def test_with_a_setting_that_is_no_more_it_is_shown_and_not_gone_on_with(place):
    config = load_config(PRESET)
    old = holder = config.resolved()
    *parents, key = place.split(".")
    for parent in parents:
        holder = holder[int(parent) if parent.isdigit() else parent]
    holder[key] = 1
    recorded = copy.deepcopy(old)
    state = begun(old)
    assert old == recorded and state.config == config  # what was read is left as it was
    with pytest.raises(UserError, match=rf"too different \(it had {place}\): finish it with that"):
        _check_same(state, config)


def test_the_name_that_data_had_in_the_first_versions():
    rows = ledgers.events()
    assert rows[0]["config"]["data"]["source"] == "digits" and "source" not in rows[0]
    state = fold("digits", rows)
    assert state.source == "digits" and not state.unknown_settings
    rows[0]["source"] = "glyphs"
    assert fold("digits", rows).source == "glyphs"


@pytest.mark.parametrize("values", [{}, {"name": "digits"}, 5, None, [], {"space": 1}])
def test_what_is_no_configuration_is_one_line(values):
    with pytest.raises(UserError, match=TOO_DIFFERENT) as caught:
        recorded_config("digits", values)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError) as caught:
        begun(values)
    assert "\n" not in str(caught.value)


def test_a_value_that_is_no_longer_allowed_is_named():
    old = ledgers.config()
    old["space"]["widths"][0]["heads"] = 5
    with pytest.raises(UserError, match=r"space.widths.0: width 96 is not divisible by its 5"):
        begun(old)


def test_a_secret_of_this_environment_hides_no_search(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "runs/data/digits")
    with pytest.raises(UserError, match=r"data\.path holds a password, token or key"):
        load_config(PRESET)
    assert begun(ledgers.config()).config.data.path == Path("runs/data/digits")


def test_events_of_a_time_with_one_method_and_no_racing_are_as_todays():
    rows = ledgers.events()
    old = [
        {"event": "calibrated", "width": 96, "counts": [8, 64], "rows": [[[8] * 6, 0.5]]},
        {"event": "planned", "rows": [[96, [32] * 6, 0.03, 0.1]]},
        {"event": "screened", "width": 64, "rows": [[[8] * 6, 0.01, 0.5, 1.5]]},
    ]
    new = [
        old[0] | {"method": "wkmedoids"},
        {"event": "planned", "rows": [[96, [32] * 6, 0.03, 0.1, "wkmedoids"]]},
        {
            "event": "screened",
            "weights": "base",
            "rows": [[64, [8] * 6, 0.01, 0.5, 1.5, "wkmedoids", None]],
        },
    ]
    states = [
        fold("digits", [*rows, *({**event, "time": 1.8e9} for event in events)])
        for events in (old, new)
    ]
    assert states[0] == states[1]
    assert states[0].planned[0].method == states[0].screened[-1].candidate.method == "wkmedoids"
    assert build_front(states[0]) == build_front(states[1])


def test_one_that_comes_before_the_search_began_is_damage():
    event = {"event": "screened", "time": 1.0, "width": 64, "rows": [[[8] * 6, 0.01, 0.5, 1.5]]}
    with pytest.raises(UserError, match="damaged in line 1"):
        fold("digits", [event])
