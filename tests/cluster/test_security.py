import json
import os
import socket
import subprocess
import sys
from concurrent import futures
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from one_process import assert_refused
from servers import QuietHandler, address_of, serving

from cluster import ray_folder
from cluster.probe import ClusterError
from cluster.security import doors
from cluster.security.doors import (
    FLAG,
    Listener,
    OpenToNetworkError,
    RayAddress,
    is_loopback,
    listeners,
    parse_address,
    refuse_open,
    refuse_open_host,
    try_door,
)


@pytest.mark.parametrize(
    ("text", "kind", "host", "port"),
    [
        ("http://10.0.0.1:8265", "http", "10.0.0.1", 8265),
        ("https://ray.example.org", "https", "ray.example.org", 443),
        ("ray://head:10001", "ray", "head", 10001),
        ("10.0.0.1:6379", "gcs", "10.0.0.1", 6379),
        ("http://[::1]:8265", "http", "::1", 8265),
        ("http://user:pass@head:8265", "http", "head", 8265),
    ],
)
def test_addresses(text, kind, host, port):
    assert parse_address(text) == RayAddress(kind, host, port)


@pytest.mark.parametrize(
    "text", ["ftp://h:1", "http://", "h:99999", "http://u:planted@h:port", "http://u:planted@[::1"]
)
def test_what_is_no_address_is_said_without_its_password(text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - several messages
        parse_address(text)
    assert "planted" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("no-such-host.invalid", False),
        ("127.0.0.1.evil.invalid", False),
        ("0", False),
    ],
)
def test_loopback(host, expected):
    assert is_loopback(host) is expected


class Server(QuietHandler):
    """Answers as `self.server.answer` says."""

    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers)))
        status, kind, body = self.server.answer
        self.send_response(status)
        if status == 302:
            self.send_header("Location", body)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body.encode())


@pytest.fixture
def web():
    with ExitStack() as stack:

        def start(status, kind="application/json", body="[]", host="127.0.0.1"):
            facts = {"answer": (status, kind, body), "seen": []}
            server = stack.enter_context(serving(Server, host, **facts))
            return server, address_of(server)

        yield start


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_what_a_stranger_is_told(web):
    assert try_door(parse_address(web(200)[1])) == "open"
    assert try_door(parse_address(web(401)[1])) == "guarded"
    assert try_door(parse_address(web(403)[1])) == "guarded"
    assert try_door(parse_address(web(404)[1])) == "foreign"
    assert try_door(parse_address(web(200, "text/html")[1])) == "foreign"
    assert try_door(parse_address(f"http://127.0.0.1:{free_port()}")) == "silent"
    assert try_door(parse_address(f"127.0.0.1:{free_port()}")) == "silent"
    # A web server is no Ray, whichever way it is asked.
    assert try_door(parse_address(web(200)[1].removeprefix("http://"))) == "foreign"


def test_a_redirect_is_not_followed_and_no_token_is_sent(web, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "planted" * 6)
    target, address = web(200)
    source, other = web(302, body=f"{address}/api/jobs/")
    assert try_door(parse_address(other)) == "foreign" and not target.seen
    (path, headers), *_ = source.seen
    assert path == "/api/jobs/" and "planted" not in json.dumps(headers)


def test_an_open_cluster_is_refused_unless_it_is_meant(web):
    open_cluster = web(200)[1]
    with pytest.raises(OpenToNetworkError) as caught:
        refuse_open(open_cluster)
    message = str(caught.value)
    assert FLAG in message and "RAY_AUTH_MODE=token" in message and "\n" not in message
    refuse_open(open_cluster, allowed=True)
    refuse_open(web(401)[1])
    for nothing in (None, "", "local", f"http://127.0.0.1:{free_port()}"):
        refuse_open(nothing)


def test_loopback_alone_may_be_open_but_a_tunnel_or_a_wide_port_may_not(web, monkeypatch):
    server, address = web(200)
    port = server.server_port

    def here(*entries):
        found = [Listener(h, p, 1, name, (name,)) for h, p, name in entries]
        monkeypatch.setattr(doors, "listeners", lambda: found)

    here(("127.0.0.1", port, "ray::Dashboard"), ("::1", 1, "gcs_server"))
    refuse_open(address)
    for entries in (
        [("127.0.0.1", port, "ray::Dashboard"), ("::", 1, "gcs_server")],
        [("127.0.0.1", port, "ssh")],
        [],
    ):
        here(*entries)
        with pytest.raises(OpenToNetworkError):
            refuse_open(address)


def test_listening_beyond_loopback_is_refused_unless_it_is_meant():
    refuse_open_host("127.0.0.1", "MLflow", "use a tunnel")
    refuse_open_host("0.0.0.0", "MLflow", "use a tunnel", allowed=True)
    for host in ("0.0.0.0", "::", "10.1.2.3", "box.invalid", ""):
        with pytest.raises(OpenToNetworkError, match="use a tunnel"):
            refuse_open_host(host, "MLflow", "use a tunnel")


class Ray(grpc.GenericRpcHandler):
    """Ray's own port: lets everybody read, or nobody."""

    def __init__(self, guarded):
        self.guarded = guarded

    def service(self, details):
        def answer(request, context):
            if self.guarded:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
            return b""

        known = details.method.startswith("/ray.rpc.NodeInfoGcsService/")
        return grpc.unary_unary_rpc_method_handler(answer) if known else None


@pytest.fixture
def ray_port():
    servers = []

    def start(guarded):
        server = grpc.server(futures.ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers([Ray(guarded)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


def test_rays_own_port(ray_port):
    for guarded, door in ((True, "guarded"), (False, "open")):
        address = parse_address(ray_port(guarded))
        assert try_door(address) == door == doors.try_ray_port(address.host, address.port)
    refuse_open(ray_port(True))
    with pytest.raises(OpenToNetworkError, match="asks nobody for a token"):
        refuse_open(ray_port(False))
    # As a driver on one of its nodes is told of it.
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_ADDRESS", ray_port(False))
        with pytest.raises(OpenToNetworkError):
            refuse_open("auto")


def test_every_command_that_takes_an_address_refuses_an_open_cluster(ray_port, web, tmp_path):
    presets = Path(__file__).parents[2] / "tune_spaces/presets"
    gcs, jobs = ray_port(False), web(200)[1]
    commands = [
        ["search", str(presets / "digits.yaml"), "--address", gcs],
        ["train", str(presets / "train-digits.yaml"), "--address", gcs],
        ["prepare", "digits", str(tmp_path / "out"), "--address", gcs],
        ["submit", str(presets / "digits.yaml"), "--address", jobs],
        ["logs", "digits", "--address", jobs],
        ["status", "digits", "--address", jobs],
        ["front", "digits", "--address", jobs],
        ["stop", "digits", "--address", jobs],
    ]
    assert_refused(commands, FLAG, "asks nobody for a token", cwd=tmp_path)
    assert not any(tmp_path.iterdir())


def test_what_listens_here_is_seen_with_its_address():
    with socket.socket() as narrow, socket.socket() as wide:
        for one, host in ((narrow, "127.0.0.1"), (wide, "0.0.0.0")):
            one.bind((host, 0))
            one.listen()
        found = {one.port: one for one in listeners()}
        for one, exposed in ((narrow, False), (wide, True)):
            entry = found[one.getsockname()[1]]
            assert entry.exposed is exposed and entry.pid == os.getpid()


LOCAL = """
import ipaddress, json, os, socket, subprocess, sys
import psutil, ray
from cluster.security.doors import *
from cluster.session import ray_session
def own_hosts():  # that others may reach this machine by
    for entry in sum(psutil.net_if_addrs().values(), []):
        if entry.family in (socket.AF_INET, socket.AF_INET6):
            ip = ipaddress.ip_address(entry.address.partition("%")[0])
            if not ip.is_loopback and not ip.is_link_local:
                yield str(ip)
def reach(one):
    return "127.0.0.1" if one.host in ("0.0.0.0", "::") else one.host
PULL = "/ray.rpc.ObjectManagerService/Pull"
with ray_session(num_cpus=1) as cluster:
    token = os.environ["RAY_AUTH_TOKEN"]
    gcs = parse_address(cluster.address)
    api = parse_address(os.environ["RAY_API_SERVER_ADDRESS"])
    session = ray._private.worker._global_node.get_session_dir_path()
    # Other instances of Ray may run on this machine.
    mine = {process.pid for process in psutil.Process().children(recursive=True)}
    own = [one for one in listeners() if one.pid in mine]
    grep = subprocess.run(["grep", "-rlI", token, session], capture_output=True, text=True)
    found = {
        "ray": [
            try_door(RayAddress("gcs", host, gcs.port))
            for host in {gcs.host, "127.0.0.1", *own_hosts()}
        ],
        "dashboard": try_door(api),
        "dashboard elsewhere": [
            try_door(RayAddress("http", host, api.port)) for host in own_hosts()
        ],
        "others": [try_ray_port(reach(one), one.port, 3) for one in own if one.exposed],
        # Moves objects between nodes; asked for none of them it changes nothing.
        "session": session,
        "objects": sorted({
            door
            for one in own if one.name == "raylet"
            for door in [try_grpc("127.0.0.1", one.port, PULL, 3)] if door != "foreign"
        }),
        "owners": sorted({one.owner for one in own}),
        "files": grep.stdout,
        "commands": [one.port for one in own if token in " ".join(one.command)],
    }
    print(json.dumps(found))
"""


def test_a_searchs_own_ray_lets_no_stranger_in_whatever_the_environment_says():
    """Ray's ports listen on every interface; the environment asks for no token."""
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", LOCAL], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["ray"]) == {"guarded"} and found["dashboard"] == "guarded"
    assert set(found["dashboard elsewhere"]) <= {"silent"}
    assert found["others"] and set(found["others"]) <= {"guarded", "foreign"}
    assert found["others"].count("guarded") >= 4 and found["owners"] == ["ray"]
    assert found["objects"] == ["guarded"]
    assert found["files"] == "" and found["commands"] == []
    # Other users of this machine reach neither its sockets nor its logs.
    private = Path(found["session"]).parents[1]
    assert private.stat().st_uid == os.getuid() and private.stat().st_mode & 0o077 == 0


def test_a_folder_for_ray_that_is_not_ones_own_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_folder, "_LONGEST_BASE", 1000)
    monkeypatch.setattr(ray_folder.tempfile, "tempdir", str(tmp_path))
    inner = ray_folder.private_folder()
    folder = inner.parent
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    assert ray_folder.private_folder() == inner
    folder.chmod(0o755)
    with pytest.raises(ClusterError, match="open to others"):
        ray_folder.private_folder()
    folder.rmdir()
    (tmp_path / "theirs").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "theirs")
    with pytest.raises(ClusterError, match="somebody else"):
        ray_folder.private_folder()
