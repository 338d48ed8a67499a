"""Several Ray hosts on one machine: network namespaces joined by a bridge (Linux, root).

The first host carries the bridge and Ray's head, without CPUs; a driver runs there through
`exec`. Nothing of it is seen outside, so other Ray instances do not disturb it. Host i's interface
is called `net<i>`: names differ between hosts, as they do in the world. Beyond the hosts with CPUs
there may be one that is none of Ray's: a person's own machine.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from resources import MARK

RAY = str(Path(sys.executable).parent / "ray")
PORT, DASHBOARD, CLIENT_PORT = 6379, 8265, 10001

# The placement groups that there are.
_HELD = f"""
import json
import ray
ray.init("10.87.0.1:{PORT}", logging_level="ERROR", log_to_driver=False)
groups = ray.util.placement_group_table().items()
print(json.dumps([key for key, group in groups if group["state"] != "REMOVED"]))
"""
# Has Ray drain the node at an address, with so many seconds of grace, once a line comes in. So
# do the agents of clouds; Ray's own command for it takes ten seconds to start.
_DRAIN = f"""
import sys, time
import ray
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
ray.init("10.87.0.1:{PORT}", logging_level="ERROR")
ids = {{node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}}
gcs = ray._raylet.GcsClient(address="10.87.0.1:{PORT}")
why = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
print("ready", flush=True)
sys.stdin.readline()
until = int(1000 * (time.time() + float(sys.argv[2])))
print(gcs.drain_node(ids[sys.argv[1]], why, "spot", until), flush=True)
"""


def why_not():
    """Why there can be no namespaces here; None where there can."""
    if shutil.which("ip") is None:
        return "the ip command is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"tokenpool-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespaces: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return None


def need(reason):
    """Skips a test that this machine is not fit for; where it is required (CI), it fails.

    `reason`: why not; None where it is fit.
    """
    if reason is not None and os.environ.get("CI"):
        pytest.fail(f"{reason}, and CI requires this test")
    if reason is not None:
        pytest.skip(reason)


def need_namespaces():
    """For tests that hosts are made for."""
    need(why_not())


def address(number):
    return f"10.87.0.{number + 1}"


class Hosts:
    """Hosts 0 (the head) to `count`, and one more without Ray where `outside` is set."""

    def __init__(self, count, cpus, folder, outside=False, environment=None):
        self.count, self.cpus, self.folder = count, cpus, folder
        self.last = count + outside
        self.tag = f"tp{os.getpid()}"
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        # Ray on the hosts outlives single tests: it is no process that they have left behind.
        own = {n: v for n, v in os.environ.items() if not n.startswith("RAY_") and n != MARK}
        self.environment = {
            **own,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",
            # A host whose Ray is gone is dead after a second, not after several.
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_failure_threshold": "3",
            # A drained host is heard of after a second, not after five.
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
            **(environment or {}),
        }

    def name(self, number):
        return f"{self.tag}-{number}"

    def make(self):
        for number in range(self.last + 1):
            _ip("netns", "add", self.name(number))
            _ip("-n", self.name(number), "link", "set", "lo", "up")
        head = self.name(0)
        _ip("-n", head, "link", "add", "net0", "type", "bridge")
        self._up(0)
        for number in range(1, self.last + 1):
            end = ("peer", "name", f"net{number}", "netns", self.name(number))
            _ip("-n", head, "link", "add", f"to{number}", "type", "veth", *end)
            _ip("-n", head, "link", "set", f"to{number}", "master", "net0", "up")
            self._up(number)

    def _up(self, number):
        _ip("-n", self.name(number), "addr", "add", f"{address(number)}/24", "dev", f"net{number}")
        _ip("-n", self.name(number), "link", "set", f"net{number}", "up")

    def exec(self, number, *words, env=None, **options):
        """A process on a host."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name(number), *words],
            env=self.environment if env is None else env,
            **options,
        )

    def start_ray(self, number, before=""):
        """Ray on a host; `before` is what its shell does first, e.g. mounts that it alone sees."""
        self.begin_ray(number, before)()

    def begin_ray(self, number, before=""):
        """The same without waiting for it, which what is returned does."""
        common = [f"--node-ip-address={address(number)}", "--object-store-memory=100000000"]
        if number == 0:
            where = ["--head", f"--port={PORT}", "--num-cpus=0", f"--temp-dir={self.folder / 'r'}"]
            where += ["--dashboard-host", address(0), f"--dashboard-port={DASHBOARD}"]
        else:
            where = [f"--address={address(0)}:{PORT}", f"--num-cpus={self.cpus}"]
        log = (self.folder / f"ray-{number}.log").open("w")
        with log:
            # Each host has a temporary folder of its own: Ray unpacks jobs' code in it.
            own = f"mount -t tmpfs none {self.folder / 'r'}" if number else ":"
            words = ["sh", "-c", f'{own} && {before or ":"} && exec "$@"', "sh"]
            words += [RAY, "start", *where, *common]
            start = self.exec(number, *words, stdout=log, stderr=log)

        def wait():
            assert start.wait(240) == 0, (self.folder / f"ray-{number}.log").read_text()

        return wait

    def drain(self, number, seconds):
        """Makes ready to tell Ray that a host will be taken away; call what is returned to do so.

        `seconds`: of grace, from then on.
        """
        process = self.exec(
            0, sys.executable, "-c", _DRAIN, address(number), str(seconds),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout.readline() == "ready\n"

        def now():
            said, _ = process.communicate("now\n", timeout=60)
            assert said.startswith("(True"), said

        return now

    def held(self):
        """Names of the placement groups on the cluster: of room that is reserved."""
        process = self.exec(0, sys.executable, "-c", _HELD, stdout=subprocess.PIPE, text=True)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        return json.loads(said.splitlines()[-1])

    def pids(self, number):
        listed = subprocess.run(
            ["ip", "netns", "pids", self.name(number)], capture_output=True, text=True, check=False
        )
        return [int(word) for word in listed.stdout.split()]

    def kill(self, number):
        """All that runs on a host, at once, as if it had lost its power."""
        for _ in range(20):
            pids = self.pids(number)
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def cut(self, number):
        """Pulls a host's network cable."""
        _ip("-n", self.name(0), "link", "set", f"to{number}", "down")

    def join(self, number):
        """Plugs it in again."""
        _ip("-n", self.name(0), "link", "set", f"to{number}", "up")

    def disturb(self, number):
        """Delays and loses what goes to a host, for good; whether the kernel can (netem)."""
        words = ["dev", f"to{number}", "root", "netem", "delay", "40ms", "20ms", "loss", "2%"]
        tc = ["ip", "netns", "exec", self.name(0), "tc", "qdisc", "replace", *words]
        return subprocess.run(tc, capture_output=True, check=False).returncode == 0

    def remove(self):
        for number in range(self.last + 1):
            self.kill(number)
            subprocess.run(["ip", "netns", "del", self.name(number)], check=False)


def _ip(*words):
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def ray_hosts(count, cpus, *, outside=False, before=None, environment=None):
    """So many hosts with CPUs, and a head without; all removed at the end.

    `before`: host → what its shell does before Ray starts; `environment`: of all of them.
    """
    # A short path: Ray's sockets lie in it, and their names may have 107 letters.
    with tempfile.TemporaryDirectory(prefix="tp-ray-", ignore_cleanup_errors=True) as folder:
        hosts = Hosts(count, cpus, Path(folder), outside, environment)
        try:
            hosts.make()
            hosts.start_ray(0, (before or {}).get(0, ""))
            # The others at once: most of a start is spent on imports and waiting.
            begun = [hosts.begin_ray(n, (before or {}).get(n, "")) for n in range(1, count + 1)]
            for wait in begun:
                wait()
            yield hosts
        finally:
            hosts.remove()
