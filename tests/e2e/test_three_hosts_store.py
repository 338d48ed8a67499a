"""A search submitted to three hosts that share nothing but an object store.

Each host has a cache of its own for what lies in the store, and fetches the data by its address.
Slow: the hosts' Ray starts for this test alone, and the search runs on it twice.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hosts import DASHBOARD, address, need_namespaces, ray_hosts
from stores import BUCKET, KEYS

from pipelines.data.prepare import prepare

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
URL = f"http://{address(0)}:{DASHBOARD}"
ENDPOINT = f"http://{address(0)}:5000"
ADDRESS = f"s3://{BUCKET}/runs"
OUTSIDE = 3
PATIENCE = 400

FILL = f"""
import sys
from pathlib import Path
import boto3
client = boto3.client("s3", endpoint_url={ENDPOINT!r})
client.create_bucket(Bucket={BUCKET!r})
for path in Path(sys.argv[1]).iterdir():
    client.upload_file(str(path), {BUCKET!r}, "data/digits/" + path.name)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def hosts(root):
    need_namespaces()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": ENDPOINT}).items():
            patch.setenv(name, value)
        # Nothing but a store in common: each host sees an empty disk of its own at `own`.
        own = f"mount -t tmpfs none {root / 'own'}"
        (root / "own").mkdir()
        patch.setenv("TOKENPOOL_CACHE", str(root / "own/cache"))
        with ray_hosts(2, cpus=1, outside=True, before=dict.fromkeys(range(3), own)) as made:
            log = (root / "moto.log").open("w")
            words = [str(BIN / "moto_server"), "-H", address(0), "-p", "5000"]
            with log:
                made.exec(0, *words, stdout=log, stderr=log)  # ended with its host
            yield made


def type_in(hosts, root, *words, code=0):
    """`tokenpool …` on the machine outside, which has a cache of its own, too."""
    (root / "outside").mkdir(exist_ok=True)
    process = hosts.exec(
        OUTSIDE, str(BIN / "tokenpool"), *words, cwd=root / "outside",
        env=hosts.environment | {"TOKENPOOL_CACHE": str(root / "outside/cache")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    out, errors = process.communicate(timeout=PATIENCE)
    assert code is None or process.returncode == code, out + errors
    return out, errors


def test_a_search_on_hosts_that_share_an_object_store_alone(hosts, root):
    prepare("digits", root / "digits")
    filled = hosts.exec(OUTSIDE, sys.executable, "-c", FILL, str(root / "digits"))
    assert filled.wait(PATIENCE) == 0, (root / "moto.log").read_text()[-2000:]
    train = {"epochs": 12, "batch_size": 32, "lr": 0.003, "warmup_epochs": 0.5}
    one, two = ({"num_workers": n, "cpus_per_worker": 0.9} for n in (1, 2))
    values = {
        "name": "far",
        "storage": ADDRESS,
        "data": {
            "path": str(root / "own/digits"),
            "address": f"s3://{BUCKET}/data/digits",
            "image_size": 32,
        },
        "model": {"patch_size": 8, "depth": 2},
        "space": {"widths": [{"width": 16, "heads": 2}]},
        "base": {"workers": one, "train": train},
        "calibrate": {"enabled": False},
        "screen": {"schedules": 4, "generations": 1, "cpus_per_actor": 0.9},
        "finals": {"trials": 1, "workers": two, "train": train | {"epochs": 3}},
        "publish": {"latency_batches": [1]},
    }
    path = root / "far.yaml"
    path.write_text(yaml.safe_dump(values))
    cluster, stored = ("--address", URL), ("--storage", ADDRESS)
    type_in(hosts, root, "submit", str(path), *cluster, "--detach")
    deadline = time.monotonic() + PATIENCE
    while True:  # until the base is being trained, as the store tells
        # Refused as long as the store holds no search.
        out, errors = type_in(hosts, root, "status", "far", *stored, "--json", code=None)
        if out and any(model["epoch"] for model in json.loads(out)["running"]):
            break
        assert time.monotonic() < deadline, out + errors
    # Asked to stop through the store, by a machine that is none of the cluster's.
    type_in(hosts, root, "stop", "far", *stored)
    type_in(hosts, root, "logs", "far", *cluster, "--follow", code=None)  # until its job is over
    out, errors = type_in(hosts, root, "submit", str(path), *cluster)
    assert "3 nodes checked" in out and "Front of far" in out, out + errors
    assert "Resuming search far" in out or "goes on" in out, out

    there = json.loads(type_in(hosts, root, "front", "far", *cluster, "--json")[0])
    here = json.loads(type_in(hosts, root, "front", "far", *stored, "--json")[0])
    assert [p["top1_val"] for p in here["points"]] == [p["top1_val"] for p in there["points"]]
    type_in(hosts, root, "export", "far", "t000", *stored, "--format", "timm", "--out", "model")
    assert (root / "outside/model").exists()
    assert not os.listdir(root / "own")  # seen from here: nothing was written to a shared disk
