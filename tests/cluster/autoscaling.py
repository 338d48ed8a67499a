"""Runs within namespaces of its own (see test_autoscaler.py): Ray's autoscaler with fake nodes.

    python autoscaling.py v1|v2

Prints one JSON object of what was seen.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray

from cluster.capacity import Room, grows_to, nodes_on_their_way, present_nodes
from cluster.placement import Gang, fit

HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
GANG = Gang(2, 1.0)  # one fills a node


def start_head(kind, folder):
    """A head without CPUs, and an autoscaler that may add two nodes of two."""
    worker = {"CPU": 2, "object_store_memory": 100 * 2**20}
    types = {
        "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "two": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": 2},
    }
    provider = {"type": "fake_multinode"}
    env = os.environ | {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    if kind == "v2":
        provider |= {"launch_multiple": True, "head_node_id": HEAD_ID}
        env |= {
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        }
    config = {
        "cluster_name": "fake",
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.1,
        "provider": provider,
        "available_node_types": types,
        "head_node_type": "head",
    }
    path = Path(folder) / "autoscaling.yaml"
    path.write_text(json.dumps(config))
    ray_command = str(Path(sys.executable).parent / "ray")
    command = [ray_command, "start", "--head", "--num-cpus=0", "--include-dashboard=false"]
    command += [f"--autoscaling-config={path}", "--object-store-memory=100000000"]
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)


def until(condition, seconds):
    """How long it took; None where it did not come."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        if condition():
            return round(time.monotonic() - start, 1)
        time.sleep(0.5)
    return None


def main(kind):
    with tempfile.TemporaryDirectory() as folder:
        start_head(kind, folder)
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        seen = {"at_first": fit(present_nodes(), GANG).jobs}
        seen["too_large"] = grows_to(Gang(3, 1.0, 1.0), seconds=10)
        seen["on_their_way_at_rest"] = nodes_on_their_way()
        seen["grows"] = grows_to(GANG, seconds=60)
        room = Room(GANG, look_every=0.5)
        seen["one_job_s"] = until(lambda: room(0, 1) == 1, 120)
        room = Room(GANG, look_every=0.5)
        seen["two_jobs_s"] = until(lambda: room(0, 5) == 2, 120)
        room.close()
        seen["all_gone_s"] = until(lambda: fit(present_nodes(), GANG).jobs == 0, 120)
        ray.shutdown()
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
