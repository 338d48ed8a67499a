"""A cloud for Ray's autoscaler: machines are Ray processes here, each with an address of its own.

Ray's own fake provider gives all of its machines one address and keeps those that have died; a
cloud does neither. The autoscaler's process imports this file by the name that its configuration
gives (autoscaling.py).
"""

import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

RAY = str(Path(sys.executable).parent / "ray")
HEAD, GCS = "10.87.1.1", "10.87.1.1:6379"
# Which machine a process runs on; Ray wants it under this name.
ID = "RAY_CLOUD_INSTANCE_ID"
COMMON = ["--object-store-memory=80000000", "--disable-usage-stats"]


def processes_of(machine):
    """All that run on a machine."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(ID) == machine:
                found.append(process)
        except psutil.Error:  # it has just ended, or is none of ours
            continue
    return found


def take_away(machine):
    """As if its power had gone: nothing on it has time to say anything."""
    for process in processes_of(machine):
        process.kill()


class Cloud(NodeProvider):
    """The machines that the autoscaler has started, those that are gone left out."""

    def __init__(self, provider_config, cluster_name):
        super().__init__(provider_config, cluster_name)
        self.lock, self.numbers = threading.Lock(), itertools.count(2)
        head = {
            TAG_RAY_NODE_KIND: NODE_KIND_HEAD,
            TAG_RAY_USER_NODE_TYPE: "head",
            TAG_RAY_NODE_NAME: "head",
            TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
        }
        self.machines = {HEAD: (head, None)}

    def non_terminated_nodes(self, tag_filters):
        with self.lock:
            for name, (_, raylet) in list(self.machines.items()):
                if raylet is not None and not raylet.is_running():  # None: the head, or it starts
                    del self.machines[name]
            return [
                name
                for name, (tags, _) in self.machines.items()
                if tag_filters.items() <= tags.items()
            ]

    def create_node_with_resources_and_labels(self, node_config, tags, count, resources, labels):
        for _ in range(count):
            with self.lock:  # a machine is known before Ray is up on it
                name = f"10.87.1.{next(self.numbers)}"
                self.machines[name] = (tags | {TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE}, None)
            environment = os.environ | {
                ID: name,
                "RAY_NODE_TYPE_NAME": tags[TAG_RAY_USER_NODE_TYPE],
            }
            command = [RAY, "start", f"--address={GCS}", f"--node-ip-address={name}", *COMMON]
            command += [f"--num-cpus={resources['CPU']}", "--dashboard-agent-listen-port=0"]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            raylet = next(each for each in processes_of(name) if each.name() == "raylet")
            with self.lock:
                self.machines[name] = (self.machines[name][0], raylet)

    def terminate_node(self, node_id):
        with self.lock:
            _, raylet = self.machines.pop(node_id)
        raylet.send_signal(signal.SIGTERM)

    def is_running(self, node_id):
        return node_id in self.machines

    def is_terminated(self, node_id):
        return node_id not in self.machines

    def node_tags(self, node_id):
        return self.machines[node_id][0]

    def internal_ip(self, node_id):
        return node_id  # a machine is called by its address

    external_ip = internal_ip
