from pathlib import Path

import pytest

from pipelines.config_file import load_config
from pipelines.errors import UserError
from pipelines.search.runner import _check_same
from pipelines.search.state import SearchState

PRESET = Path(__file__).parents[3] / "tune_spaces/presets/digits.yaml"


def state_of(config):
    return SearchState(config.name, recorded=config)


def test_the_same_config_elsewhere_goes_on():
    _check_same(state_of(load_config(PRESET)), load_config(PRESET, ["storage=/elsewhere"]))


def test_another_config_is_refused_and_the_change_named():
    with pytest.raises(UserError, match=r"finals.trials: 6 → 9\): choose a new name"):
        _check_same(state_of(load_config(PRESET)), load_config(PRESET, ["finals.trials=9"]))
