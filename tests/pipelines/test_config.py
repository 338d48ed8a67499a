from pathlib import Path

import pytest
import yaml

from pipelines.config import SearchConfig, config_hash, differences
from pipelines.config_file import load_config
from pipelines.errors import UserError

PRESET = Path(__file__).parents[2] / "tune_spaces/presets/digits.yaml"


@pytest.fixture
def config_file(tmp_path):
    def write(change):
        values = yaml.safe_load(PRESET.read_text())
        change(values)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def one_line(path, *overrides):
    with pytest.raises(UserError) as caught:
        load_config(path, list(overrides))
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_preset_is_valid_and_has_two_widths():
    config = load_config(PRESET)
    assert len(config.space.widths) >= 2
    assert config.model.num_patches(config.data.image_size) == 64
    assert config.screen.schedules >= 200 and config.finals.trials >= 6


def test_an_unknown_key_is_named_with_the_likely_one(config_file):
    path = config_file(lambda v: v["finals"].update(trails=3))
    assert "finals.trails" in one_line(path)
    assert "did you mean trials?" in one_line(path)


def test_a_width_its_heads_do_not_divide_is_named(config_file):
    path = config_file(lambda v: v["space"].update(widths=[{"width": 100, "heads": 3}]))
    message = one_line(path)
    assert "width 100 is not divisible by its 3 heads: use 99 or 102" in message


def test_overrides_are_yaml_and_reach_nested_keys():
    config = load_config(PRESET, ["finals.trials=9", "space.max_gmacs=0.02", "name=other"])
    assert (config.finals.trials, config.space.max_gmacs, config.name) == (9, 0.02, "other")


@pytest.mark.parametrize(
    "override",
    ["finals.trials", "=3", "seed.x=1", "finals.trials=[1", "seed=!!int x", "name=2001-99-99"],
)
def test_a_bad_override_is_named(override):
    assert "--set" in one_line(PRESET, override)


@pytest.mark.fault("bug in a config")
def test_a_missing_file_and_a_broken_file(tmp_path):
    assert "no config file" in one_line(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    for text in ("name: [", "name: 2001-99-99", "a\0b", "[" * 10_000):
        broken.write_text(text)
        assert "broken.yaml" in one_line(broken) and "YAML" in one_line(broken)
    for nothing in ("storage=", "storage=3", "storage=[runs]"):
        assert "write a folder, or an address" in one_line(PRESET, nothing)


def test_a_batch_the_workers_cannot_share_and_an_image_the_patches_do_not_fill():
    assert "not divisible" in one_line(PRESET, "finals.train.batch_size=33")
    assert "not a multiple" in one_line(PRESET, "data.image_size=30")
    assert "min_tokens 65" in one_line(PRESET, "space.min_tokens=65")


def test_the_hash_follows_what_decides_the_result_and_not_where_it_lies():
    plain = load_config(PRESET)
    assert plain.config_hash() == load_config(PRESET, ["storage=/elsewhere"]).config_hash()
    wider = load_config(PRESET, ["finals.max_concurrent=64"])  # gone on with on a larger cluster
    assert plain.config_hash() == wider.config_hash()
    assert plain.config_hash() != load_config(PRESET, ["seed=1"]).config_hash()
    # What the ledger keeps as JSON hashes to the same.
    assert config_hash(plain.resolved()) == plain.config_hash()
    assert SearchConfig.model_validate(plain.resolved()) == plain


def test_differences_name_the_leaf():
    rows = differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    assert rows == ["a.c: 2 → 3"]
