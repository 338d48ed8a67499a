"""Every preset that comes with the package loads, and its space is what its comments say."""

from pathlib import Path

import numpy as np
import pytest
import yaml

import tokenpool as tp
from benchmarks.quality.config import QualityConfig
from pipelines.config import SearchConfig, TrainRunConfig
from pipelines.config_file import load_as, load_config
from pipelines.search.search_space import check_method, dense_gmacs, make_space

PRESETS = Path(__file__).parents[2] / "tune_spaces/presets"
SEARCHES = [p for p in sorted(PRESETS.glob("*.yaml")) if "space" in yaml.safe_load(p.read_text())]
QUALITIES = [p for p in sorted(PRESETS.glob("quality-*.yaml"))]
TRAININGS = [p for p in sorted(PRESETS.glob("train-*.yaml"))]
CLASSES = {
    "digits": 10,
    "glyphs": 36,
    "glyphs-sparse": 36,
    "deit-ti": 1000,
    "deit-s": 1000,
    "deit-b": 1000,
    "pretrained": 36,
}


def test_there_is_one_for_each_model_and_data_set():
    assert {path.stem for path in SEARCHES} == set(CLASSES) and TRAININGS


@pytest.mark.parametrize("path", SEARCHES, ids=lambda p: p.stem)
def test_a_search_preset_has_a_space_one_can_sample(path):
    config = load_config(path)
    assert isinstance(config, SearchConfig) and config.name == path.stem
    for method in config.space.all_methods:
        check_method(method)
    space = make_space(config, CLASSES[path.stem])
    assert len(space.widths) == len(config.space.widths)
    for candidate in space.sample(np.random.default_rng(0), 12):
        counts = [k for k in candidate.schedule if k != space.patches]
        assert all(k % config.space.token_step == 0 for k in counts)
        assert tp.Schedule(candidate.schedule)  # non-increasing


@pytest.mark.parametrize("path", TRAININGS, ids=lambda p: p.stem)
def test_a_training_preset_loads(path):
    load_as(TrainRunConfig, path)


@pytest.mark.parametrize("path", QUALITIES, ids=lambda p: p.stem)
def test_a_quality_preset_loads(path):
    config = load_as(QualityConfig, path)
    assert f"quality-{config.name}" == path.stem
    assert config.models or (len(config.costs) >= 6 and len(config.widths) == 3)


def test_dense_costs_are_the_published_ones():
    """shared/paper.md, cost model: the paper's plotted positions agree with them."""
    published = {192: 1.254, 252: 2.074, 318: 3.213, 384: 4.599, 768: 17.56}
    seen = {}
    for name in ("deit-ti", "deit-s", "deit-b"):
        config = load_config(PRESETS / f"{name}.yaml")
        for width in config.space.widths:
            seen[width.width] = dense_gmacs(config, width, 1000)
    for width, gmacs in published.items():
        assert seen[width] == pytest.approx(gmacs, rel=2e-3), width
