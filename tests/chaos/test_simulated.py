"""Killed at every single record, a search ends as if nothing had been. See `simulated.py`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def kill_all(tmp_path: Path, step: int) -> dict[str, Any]:
    harness = Path(__file__).with_name("simulated.py")
    # In a process of its own, which has no threads when it forks.
    done = subprocess.run(
        [sys.executable, str(harness), str(tmp_path), str(step)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["plain"]["events"] > 60 and found["plain"]["trials"] >= 7
    # Told the same events, a policy without a cluster decides the same.
    assert found["plain"]["decisions"] >= 6 and found["supernet"]["decisions"] >= 6
    return found


def test_killed_at_many_a_record_a_search_ends_as_undisturbed(tmp_path):
    found = kill_all(tmp_path, 14)
    assert found["wrong"] == [] and found["sessions"] > 25


@pytest.mark.chaos
def test_killed_at_each_record_a_search_ends_as_undisturbed(tmp_path, told):
    found = kill_all(tmp_path, 1)
    assert found["wrong"] == [] and found["sessions"] > 200
    told("driver killed before, within and after a ledger's write", found["sessions"] // 2)


FAIL = """
import json, sys
from pathlib import Path
import simulated as s
storage = Path(sys.argv[1]) / "runs"
s.pretend()
s.prepare("digits", storage.parent / "data")
s.FAILS |= json.loads(sys.argv[2])
over = s.session(storage, {}, None)
state = s.state_of(storage)
found = {t.model_id: [t.status, t.reason] for t in state.trials.values()}
print(json.dumps({"over": over, "complete": state.complete, "trials": found}))
"""
NUMERIC = (
    "numeric: the loss is nan at step 27 of t001 at learning rate 0.001, 3 such steps in a row"
)
MEMORY = "out of memory with one image at a time: take a smaller model"


@pytest.mark.fault("trial that fails for good: the search goes on")
def test_trials_that_fail_for_good_are_marked_and_the_search_goes_on(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FAIL, str(tmp_path), json.dumps({"t001": NUMERIC, "t002": MEMORY})],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    trials = found["trials"]
    assert found["over"] and found["complete"]
    assert trials.pop("t001") == ["failed", NUMERIC] and trials.pop("t002") == ["failed", MEMORY]
    assert len(trials) >= 5 and {status for status, _ in trials.values()} <= {"done", "stopped"}
    assert "done" in [status for status, _ in trials.values()]
