import copy
from pathlib import Path

import pytest

from pipelines.config_file import load_config
from pipelines.errors import UserError
from pipelines.search.runner import _check_same
from pipelines.search.state import SearchState

PRESET = Path(__file__).parents[3] / "tune_spaces/presets/digits.yaml"


def state_of(config):
    return SearchState(
        config.name, config=copy.deepcopy(config.resolved()), config_hash=config.config_hash()
    )


def test_the_same_config_elsewhere_goes_on():
    _check_same(state_of(load_config(PRESET)), load_config(PRESET, ["storage=/elsewhere"]))


def test_another_config_is_refused_and_the_change_named():
    with pytest.raises(UserError, match=r"finals.trials: 6 → 9\): choose a new name"):
        _check_same(state_of(load_config(PRESET)), load_config(PRESET, ["finals.trials=9"]))


def test_a_search_begun_before_a_setting_existed_goes_on():
    config = load_config(PRESET)
    old = state_of(config)
    del old.config["finals"]["train"]["layer_decay"]
    _check_same(old, config)
    old.config["gone"] = 1
    with pytest.raises(UserError, match="too different"):
        _check_same(old, config)
