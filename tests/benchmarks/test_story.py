"""`python -m benchmarks.story`: a step that was done is not done again, one that fails is said."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from benchmarks import story
from pipelines.errors import UserError


def ran(found):
    """In place of a command that prints this."""
    return lambda *_, **__: subprocess.CompletedProcess([], 0, json.dumps(found))


def test_steps_are_kept_and_not_run_again(tmp_path, monkeypatch):
    night = story.Night(tmp_path)
    (tmp_path / "made").mkdir()  # by a step that was killed
    monkeypatch.setattr(subprocess, "run", ran({"id": "t1"}))
    assert night.step("pick", "pick", "s", "--json", out=tmp_path / "made") == {"id": "t1"}
    assert not (tmp_path / "made").exists()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("run again"))
    again = story.Night(tmp_path)
    assert again.step("pick", "pick", "s", "--json") == {"id": "t1"}
    with pytest.raises(UserError, match="holds tokenpool pick s --json: give another --folder"):
        again.step("pick", "pick", "s", "--knee", "--json")


def test_a_search_that_ended_early_is_not_done(tmp_path, monkeypatch):
    night, state = story.Night(tmp_path), SimpleNamespace(complete=False, ended="stopped")
    state.seconds_at_work = lambda: 3600.0
    monkeypatch.setattr(subprocess, "run", ran(None))
    monkeypatch.setattr(story, "load_state", lambda _: state)
    for _ in range(2):
        with pytest.raises(UserError, match=r"before all was done \(stopped\): type it again"):
            story._search(night, "preset.yaml", ["--set", "a=1"])
    state.complete = True
    story._search(night, "preset.yaml", ["--set", "a=1"])
    assert story.Night(tmp_path).steps["search"]["seconds"] == 3600.0


def test_a_step_that_fails_is_one_line_and_is_not_kept(tmp_path):
    night = story.Night(tmp_path)
    with pytest.raises(UserError, match=r"tokenpool front nothing --storage .* failed") as caught:
        night.step("front", "front", "nothing", "--storage", str(tmp_path))
    assert caught.value.exit_code and not night.steps
