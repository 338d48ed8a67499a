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
