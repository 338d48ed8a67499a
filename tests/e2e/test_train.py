"""`tokenpool train`: one job alone, typed twice. Slow: it starts Ray twice."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import tokenpool as tp

TOKENPOOL = str(Path(sys.executable).parent / "tokenpool")
PRESET = Path(__file__).parents[2] / "tune_spaces/presets/train-digits.yaml"


@pytest.mark.slow
def test_trains_a_pooled_model_and_goes_on_where_it_was(tmp_path):
    config = yaml.safe_load(PRESET.read_text())
    config |= {"schedule": [8, 4], "model": {"patch_size": 8, "depth": 2}}
    config["width"] = {"width": 32, "heads": 2}
    config["train"] |= {"epochs": 2}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))

    def run(*words):
        result = subprocess.run(
            [TOKENPOOL, *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    run("prepare", "digits", "runs/data/digits")
    first = run("train", "train.yaml")
    path = Path(first.split("model in ")[1].strip())
    model = tp.load(path)
    assert tuple(tp.pooling_of(model).schedule) == (8, 4)
    again = run("train", "train.yaml")
    assert again.splitlines()[-1] == first.splitlines()[-1]
