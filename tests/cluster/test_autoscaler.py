"""A cluster that Ray's autoscaler grows for what waits, loses a machine of, and shrinks after."""

import json
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hosts import need

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
# Network and processes of its own, that end with it: its machines must not meet another test's Ray.
UNSHARE = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
ADDRESSES = "ip link set lo up && for i in $(seq 1 20); do ip addr add 10.87.1.$i/24 dev lo; done"


def run_apart(kind):
    # A short path: Ray's sockets lie in it, and their names may have 107 letters.
    with tempfile.TemporaryDirectory(prefix="tp-ray-", ignore_cleanup_errors=True) as folder:
        token = Path(folder, "token")
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TOKENPOOL_"))}
        own = {
            "PYTHONPATH": f"{ROOT}:{HERE}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_TMPDIR": folder,
        }
        script = f"{ADDRESSES} && exec {sys.executable} {HERE}/autoscaling.py {kind}"
        return subprocess.run(
            [*UNSHARE, "sh", "-c", script],
            env=clean | own,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


def why_not():
    """Why there can be no namespaces here; None where there can."""
    try:
        tried = subprocess.run([*UNSHARE, "ip", "link"], capture_output=True, text=True, timeout=30)
    except OSError as error:
        return str(error)
    if tried.returncode == 0:
        return None
    return f"no namespaces: {tried.stderr.strip() or 'not permitted'}"


@pytest.mark.slow  # five jobs of four processes each start, and machines come and go: two minutes
@pytest.mark.parametrize("kind", ["v1", "v2"])
@pytest.mark.fault("machine of a trial lost: the other trials are not touched")
def test_trials_use_what_an_autoscaler_brings_and_outlive_what_it_loses(kind):
    need(why_not())
    done = run_apart(kind)
    assert done.returncode == 0, done.stderr[-5000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    # What no type of machine holds brings nothing; at first there is room for one job.
    assert not seen["too_large"] and seen["at_first"] == 1
    # Every trial was trained to its end; more than one at a time, on machines that were asked for.
    jobs = {f"t{number}" for number in range(4)}
    assert seen["done"] == dict.fromkeys(jobs, 3) and seen["failed"] == {}
    assert most_at_a_time(seen["workers"]) >= 2
    assert len({line["node"] for line in seen["workers"]}) >= 2
    # The one that lost its machine went on from its checkpoint, on another one.
    taken = seen["taken"]
    begins = [
        (line["node"], line["epoch"])
        for line in seen["workers"]
        if line["job"] == taken["job"] and line["event"] == "began"
    ]
    assert begins[0] == (taken["node"], 0)
    assert len(begins) == 2 and begins[1][0] != taken["node"] and begins[1][1] >= 1
    others = [line for line in seen["workers"] if line["job"] != taken["job"]]
    assert sum(line["event"] == "began" for line in others) == 3
    # What they held is free, and machines that nobody needs any more are given back.
    assert seen["free_s"] is not None and seen["shrunk_s"] is not None


def most_at_a_time(lines):
    """How many workers there were at once; one that lost its machine counts to its next start."""
    running, most = set(), 0
    for line in sorted(lines, key=lambda line: line["time"]):
        if line["event"] == "began":
            running.add(line["job"])
        else:
            running.discard(line["job"])
        most = max(most, len(running))
    return most
