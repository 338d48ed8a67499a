"""A search submitted to a real cluster from outside: three hosts, tokens, addresses of their own.

Each host is a network namespace with its own temporary folder; what they share is the folder that
searches are kept in. Skipped where there can be no namespaces; with CI set, it fails there.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from hosts import CLIENT_PORT, DASHBOARD, PORT, address, need_namespaces, ray_hosts
from thinning import fast

from pipelines.data.prepare import prepare
from pipelines.search.ledger import read_events
from pipelines.storage.search_files import Search

TOKENPOOL = str(Path(sys.executable).parent / "tokenpool")
URL = f"http://{address(0)}:{DASHBOARD}"
GCS = f"{address(0)}:{PORT}"
OUTSIDE = 3
PATIENCE = 400

LOOK = """
import json, sys, time
import ray
from cluster.leftovers import held_groups
from cluster.session import ray_session
with ray_session(sys.argv[1]):
    deadline = time.monotonic() + 60
    while True:  # what a process that ends holds is free a moment later
        free, total = ray.available_resources(), ray.cluster_resources()
        if free == total or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    from ray.util.state import list_actors
    actors = [a.class_name for a in list_actors(filters=[("state", "=", "ALIVE")])]
    print(json.dumps({"free": free, "total": total, "held": len(held_groups()), "actors": actors}))
"""
JOBS = """
import json, sys
from cluster.jobs import JobApi
jobs = JobApi(sys.argv[1]).searches()
print(json.dumps([[job.job_id, job.status, job.exit_code] for job in jobs]))
"""
KILL = """
import json, sys
from cluster.jobs import JobApi
api = JobApi(sys.argv[1])
api.kill(sys.argv[2])
print(json.dumps(api.wait(sys.argv[2], 60)))
"""
PREFLIGHT = """
import json, subprocess, sys
from pathlib import Path
from cluster.preflight import check_nodes
from cluster.session import ClusterError, ray_session
place = Path(sys.argv[2])
good, odd = [place / "digits" / n for n in ("manifest.json", "val.beton")], place / "odd/val.beton"
def asked(*arguments):
    try:
        return check_nodes(*arguments).nodes
    except ClusterError as error:
        return [error.exit_code, str(error)]
def blocked(do):
    command = ["ip", "-n", sys.argv[3], "route", do, "unreachable", sys.argv[4]]
    subprocess.run(command, check=True)
with ray_session(sys.argv[1]) as cluster:
    found = {}
    found["storage"] = asked(place / "private", good)
    found["data"] = asked(place / "runs", [odd])
    found["missing"] = asked(place / "runs", [place / "private/val.beton"])
    blocked("add")
    found["ports"] = asked(place / "runs", good)
    blocked("del")
    try:
        cluster.concurrent_jobs(2, 0.5, 1.0)
    except ClusterError as error:
        found["gpus"] = str(error)
from ray._private import utils
mine = utils.compute_version_info()
utils.compute_version_info = lambda: (mine[0], "3.9.1", *mine[2:])
try:
    with ray_session(sys.argv[1]):
        found["python"] = "let in"
except ClusterError as error:
    found["python"] = [error.exit_code, str(error)]
print(json.dumps(found))
"""


TRAIN = {"epochs": 24, "batch_size": 32, "lr": 0.003, "warmup_epochs": 0.5}


def config(place, name, **changes):
    two = {"num_workers": 2, "cpus_per_worker": 0.9, "max_failures": 0}
    values = {
        "name": name,
        "storage": str(place / "runs"),
        "data": {"path": str(place / "digits"), "image_size": 32},
        "model": {"patch_size": 8, "depth": 2},
        "space": {"widths": [{"width": 16, "heads": 2}]},
        "base": {"workers": {"num_workers": 1, "cpus_per_worker": 0.9},
                 "train": TRAIN},
        "calibrate": {"enabled": False},
        "screen": {"schedules": 4, "generations": 1, "cpus_per_actor": 0.9},
        "finals": {"trials": 1, "workers": two, "train": TRAIN | {"epochs": 4}},
    }  # fmt: skip
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        node = values
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    need_namespaces()
    place = tmp_path_factory.mktemp("shared")
    prepare("digits", place / "digits")
    (place / "private").mkdir()
    for name in ("odd", "other"):
        (place / name).mkdir()
    content = (place / "digits/val.beton").read_bytes()
    (place / "odd/val.beton").write_bytes(content)
    (place / "private/val.beton").write_bytes(content)
    (place / "other/val.beton").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return place


@pytest.fixture(scope="module")
def hosts(place):
    # On host 2 one folder is a disk of its own, and another holds other data.
    alone = f"mount -t tmpfs none {place}/private && mount --bind {place}/other {place}/odd"
    with ray_hosts(2, cpus=1, outside=True, before={2: alone}) as made:
        yield made


class Command:
    """`tokenpool …` typed on the machine outside."""

    def __init__(self, hosts, *words, env=None):
        self.process = hosts.exec(
            OUTSIDE, TOKENPOOL, *words, env=env,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            # A shell starts what runs in the background (this test, perhaps) deaf to Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def end(self, code=0):
        """What it printed and what it said of errors, once it has ended with this code."""
        out, errors = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == code, out + errors
        return out, errors

    def interrupt(self):
        os.killpg(self.process.pid, signal.SIGINT)


def run(hosts, number, script, *arguments, env=None):
    """What a script printed last, on a host."""
    process = hosts.exec(
        number, sys.executable, "-c", script, *arguments, env=env, stdout=subprocess.PIPE, text=True
    )
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    return json.loads(out.splitlines()[-1])


def there(hosts, *words, code=0, env=None):
    return Command(hosts, *words, "--address", URL, env=env).end(code)


def events(place, name):
    return list(read_events(Search(place / "runs", name).ledger))


def kinds(place, name):
    return [event["event"] for event in events(place, name)]


def wait_until(true):
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trains_on(hosts, number):
    """Whether a worker of a training job runs on a host."""
    for pid in hosts.pids(number):
        try:
            if "RayTrainWorker" in " ".join(psutil.Process(pid).cmdline()):
                return True
        except psutil.NoSuchProcess:
            continue
    return False


def all_is_free(hosts):
    found = run(hosts, 0, LOOK, GCS)
    assert found["free"] == found["total"] and found["held"] == 0, found
    assert not [name for name in found["actors"] if "Coordinator" not in name], found
    assert (found["total"]["CPU"], found["total"]["object_store_memory"]) == (2.0, 3e8)


def without_token(hosts):
    return {k: v for k, v in hosts.environment.items() if not k.startswith("RAY_AUTH")}


def strangers(hosts):
    """Environments of who has no token, and of who has a wrong one."""
    none = without_token(hosts) | {"HOME": "/nonexistent"}
    return {"none": none, "wrong": none | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "guessed"}}


@pytest.mark.parametrize("who", fast(1, ["wrong", "none"]))
def test_a_stranger_submits_lists_and_reads_nothing(hosts, place, who):
    env = strangers(hosts)[who]
    path = config(place, "stranger")
    commands = [
        Command(hosts, *words, "--address", URL, env=env)
        for words in (["submit", path], ["logs", "stranger"], ["status"], ["stop", "stranger"])
    ]
    for command in commands:
        _, errors = command.end(2)
        assert len(errors.splitlines()) == 1 and "token" in errors, errors
    header = "" if who == "none" else "Authorization: Bearer guessed"
    script = f"""
import json, sys
sys.path[:0] = {sys.path!r}
import requests
from cluster.probe import AddressError, check_gcs
from cluster.security.doors import parse_address, try_door
header = dict([{header!r}.split(": ")]) if {header!r} else {{}}
asked = [("GET", "/api/jobs/"), ("POST", "/api/jobs/"), ("GET", "/api/jobs/x/logs"),
         ("POST", "/api/jobs/x/stop"), ("GET", "/api/v0/actors"), ("GET", "/api/v0/logs"),
         ("GET", "/nodes?view=summary"), ("GET", "/api/cluster_status"), ("GET", "/api/version"),
         ("PUT", "/api/packages/gcs/x.zip"), ("GET", "/logs/")]
url = {URL!r}
codes = [requests.request(how, url + path, headers=header, json={{"entrypoint": "true"}},
                          timeout=30).status_code for how, path in asked]
doors = [try_door(parse_address(one)) for one in ({GCS!r}, "ray://{address(0)}:{CLIENT_PORT}")]
import grpc
for target, method in (({GCS!r}, "NodeInfoGcsService/GetAllNodeInfo"),
                       ("{address(0)}:{CLIENT_PORT}", "RayletDriver/ClusterInfo")):
    call = grpc.insecure_channel(target).unary_unary("/ray.rpc." + method)
    try:
        call(b"", timeout=30, metadata=[("authorization", "Bearer guessed")])
        doors.append("in")
    except grpc.RpcError as error:
        doors.append(error.code().name)
try:
    check_gcs({GCS!r}); gcs = "in"
except AddressError as error:
    gcs = str(error)
print(json.dumps([codes, doors, gcs]))
"""
    codes, doors, gcs = run(hosts, OUTSIDE, script, env=env)
    assert set(codes) == {401 if who == "none" else 403}
    assert doors == ["guarded", "guarded", "UNAUTHENTICATED", "UNAUTHENTICATED"], doors
    assert "token" in gcs
    jobs, _ = Command(hosts, "logs", "stranger", "--address", URL).end(2)
    assert jobs == ""


@pytest.mark.slow  # over a minute: it waits for addresses where nobody is
def test_what_is_wrong_with_a_cluster_is_named(hosts, place):
    nobody, foreign = "http://10.87.0.99:8265", f"http://{address(0)}:{CLIENT_PORT}"
    relative = str(place / "relative.yaml")
    Path(relative).write_text(Path(config(place, "far")).read_text())
    commands = {
        "nothing answers": Command(hosts, "submit", relative, "--address", nobody),
        "10001": Command(hosts, "submit", relative, "--address", foreign),
        "storage runs": Command(
            hosts, "submit", relative, "--address", URL, "--set", "storage=runs"
        ),
    }
    for said, command in commands.items():
        _, errors = command.end(2)
        assert len(errors.splitlines()) == 1 and said in errors, errors

    found = run(hosts, 0, PREFLIGHT, GCS, str(place), hosts.name(1), address(2))
    two = address(2)
    for case, said in {
        "storage": f"node {two}: storage {place}/private is not the same folder there",
        "data": f"node {two}: {place}/odd/val.beton is not what it is on node {address(0)}",
        "missing": f"node {two}: {place}/private/val.beton cannot be read",
        "ports": "cannot reach node",
    }.items():
        code, text = found[case]
        assert code == 2 and said in text and two in text and "\n" not in text, found
    assert address(1) in found["ports"][1]  # it is the pair that is named
    assert "1 GPU" in found["gpus"]
    code, text = found["python"]
    assert code == 2 and "other versions" in text and "3.9.1" in text and "\n" not in text
    # The same by the command line: exit code 2, the job failed, and nothing was recorded.
    path = config(place, "odd", storage=str(place / "private"))
    out, errors = there(hosts, "submit", path, code=2)
    assert "private is not the same folder there" in out and "Traceback" not in out + errors
    assert not events(place, "odd")


@pytest.mark.slow
def test_a_search_that_fails_fails_its_job_and_leaves_nothing(hosts, place):
    worker = {"num_workers": 1, "cpus_per_worker": 0.9, "max_failures": 0}
    train = {"lr": 1e30, "max_bad_steps": 1, "max_rollbacks": 0}
    path = config(place, "bad", base__workers=worker, base__train=TRAIN | train)
    # Two people submit it at the same moment: it runs once, and both see it.
    commands = [Command(hosts, "submit", path, "--address", URL) for _ in range(2)]
    for out, errors in (ended := [command.end(1) for command in commands]):
        assert "the base of width 16 failed: numeric: the loss is nan" in out, out + errors
    assert ["submitted as" in out for out, _ in ended].count(True) == 1
    jobs = [job for job in run(hosts, OUTSIDE, JOBS, URL) if "bad" in job[0]]
    assert jobs == [["tokenpool-bad-1", "FAILED", 1]]
    all_is_free(hosts)


@pytest.mark.slow
def test_submitted_left_stopped_found_again_and_brought_home(hosts, place):
    path = config(place, "first")
    attached = Command(hosts, "submit", path, "--address", URL)
    wait_until(lambda: "base_report" in kinds(place, "first"))
    attached.interrupt()
    out, errors = attached.end(130)
    assert "submitted as job tokenpool-first-1" in out and "the search goes on" in errors
    out, _ = there(hosts, "stop", "first")
    assert "first" in out and "trial_done" not in kinds(place, "first")
    all_is_free(hosts)

    # Another starts at once: the same one, which goes on.
    attached = Command(hosts, "submit", path, "--address", URL)
    wait_until(lambda: kinds(place, "first").count("began") == 2)
    again = Command(hosts, "submit", path, "--address", URL)
    other = Command(hosts, "submit", path, "--address", URL, "--set", "seed=1")
    _, errors = other.end(2)
    assert "running there with another config" in errors and len(errors.splitlines()) == 1
    status = json.loads(there(hosts, "status", "first", "--json")[0])
    assert (status["name"], status["state"]) == ("first", "running")
    wait_until(lambda: trains_on(hosts, 1) and trains_on(hosts, 2))
    assert not trains_on(hosts, 0)  # the head has no CPUs to give
    attached.interrupt()
    attached.end(130)
    out, _ = again.end()
    assert "runs already as job tokenpool-first-2" in out
    assert "3 nodes checked" in out and "Front of first" in out
    all_is_free(hosts)

    front = json.loads(there(hosts, "front", "first", "--json")[0])
    assert front["points"] and front["points"][0]["top1_val"] is not None
    assert kinds(place, "first").count("trial_done") == 1
    logs, _ = there(hosts, "logs", "first")
    assert "Resuming search first" in logs and "Front of first" in logs


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ray job stop", "SIGKILL"])
@pytest.mark.fault("driver of a cluster killed: its room is cleared")
def test_what_a_driver_that_is_killed_leaves_is_cleared_by_the_next_start(hosts, place, how):
    """Slow, as it is beside what users are told to do."""
    name = how.replace(" ", "-")
    there(hosts, "submit", config(place, name), "--detach")
    wait_until(lambda: "base_report" in kinds(place, name))
    if how == "SIGKILL":
        for pid in hosts.pids(0):
            line = " ".join(psutil.Process(pid).cmdline())
            if "pipelines.cli search" in line:
                os.kill(pid, signal.SIGKILL)
    else:
        run(hosts, OUTSIDE, KILL, URL, f"tokenpool-{name}-1")
    all_is_free(hosts)  # it looks through a session, which clears at its start
