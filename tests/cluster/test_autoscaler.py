"""An autoscaler is told what waits, brings it, and takes it away again: Ray's own, fake nodes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Network and processes of its own, that end with it: fake nodes must not meet another test's Ray.
UNSHARE = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]


def may_unshare():
    try:
        return subprocess.run([*UNSHARE, "true"], check=False, timeout=30).returncode == 0
    except OSError:
        return False


@pytest.mark.slow  # nodes start and idle nodes are waited for
@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_a_cluster_grows_for_what_waits_and_shrinks_after(kind):
    if not may_unshare():
        pytest.skip("namespaces are not permitted here: run as root")
    script = (
        f"ip link set lo up && exec {sys.executable} {ROOT}/tests/cluster/autoscaling.py {kind}"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TOKENPOOL_"))}
    done = subprocess.run(
        [*UNSHARE, "sh", "-c", script],
        env=clean | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["at_first"] == 0
    # What no node type holds brings nothing, and is not asked for any longer.
    assert not seen["too_large"] and not seen["on_their_way_at_rest"]
    assert seen["grows"]
    assert seen["one_job_s"] is not None and seen["two_jobs_s"] is not None
    assert seen["all_gone_s"] is not None
