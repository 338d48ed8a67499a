"""`python -m benchmarks.story`: a step that was done is not done again, one that fails is said."""

import json
import subprocess

import pytest

from benchmarks import story
from pipelines.errors import UserError


def test_steps_are_kept_and_not_run_again(tmp_path, monkeypatch):
    night = story.Night(tmp_path)
    printed = night.step("which", "--version")
    assert printed.startswith("tokenpool ")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("run again"))
    again = story.Night(tmp_path)
    assert again.step("which", "--version") == printed
    assert json.loads((tmp_path / "steps.json").read_text())["which"]["seconds"] > 0


def test_a_step_that_fails_is_one_line_and_is_not_kept(tmp_path):
    night = story.Night(tmp_path)
    with pytest.raises(UserError, match=r"tokenpool front nothing --storage .* failed") as caught:
        night.step("front", "front", "nothing", "--storage", str(tmp_path))
    assert caught.value.exit_code and not night.steps
