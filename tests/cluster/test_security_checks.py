import contextlib
import json
import os
import socket
import subprocess
import sys

import pytest
from found_checks import SECRET, by_status, failures
from servers import QuietHandler, serving

from cluster.security import door_checks
from cluster.security.door_checks import check_cluster, check_listeners, check_mlflow
from cluster.security.doors import FLAG, Listener
from pipelines.commands.doctor_command import security_checks
from pipelines.secrecy.secret_checks import check_storage


class Server(QuietHandler):
    """An MLflow server, a Ray dashboard or a page of metrics, as `self.server.kind` says."""

    def do_GET(self):
        kind, guarded = self.server.kind
        status, content = 200, "application/json"
        if guarded:
            status = 401
        elif kind == "metrics":
            content = "text/plain"
        elif (kind == "mlflow" and "/experiments/search" not in self.path) or (
            kind == "ray" and self.path != "/api/jobs/"
        ):
            status = 404
        self.send_response(status)
        self.send_header("Content-Type", content)
        self.end_headers()
        self.wfile.write(b"{}")


@pytest.fixture
def serve():
    with contextlib.ExitStack() as stack:

        def start(kind, guarded=False):
            return stack.enter_context(serving(Server, kind=(kind, guarded))).server_port

        yield start


def ray(port, host="0.0.0.0", name="ray::DashboardAgent"):
    return Listener(host, port, 1, name, (name,))


def test_ray_ports_on_loopback_and_beyond(serve):
    assert "none is open" in next(iter(check_listeners([]))).found
    checks = list(check_listeners([ray(serve("ray"), "127.0.0.1")]))
    assert not failures(checks) and "loopback alone" in checks[0].found
    checks = list(check_listeners([ray(serve("ray", guarded=True))]))
    assert not failures(checks) and "none lets a stranger in" in checks[0].found
    port = serve("ray")
    checks = list(check_listeners([ray(port), ray(serve("ray", guarded=True))]))
    assert f"0.0.0.0:{port}" in failures(checks) and checks[0].is_door
    assert "RAY_AUTH_MODE=token" in checks[0].remedy
    metrics = serve("metrics")
    checks = list(check_listeners([ray(metrics)]))
    assert not failures(checks) and str(metrics) in by_status(checks, "warn")[0].found


def test_whose_port_it_is():
    def owner(name, *command):
        return Listener("::", 1, 1, name, command).owner

    assert owner("gcs_server", "/x/ray/core/src/ray/gcs/gcs_server") == "ray"
    assert owner("python", "python", "/x/ray/dashboard/dashboard.py") == "ray"
    assert owner("python", "python", "-m", "ray.util.client.server") == "ray"
    assert owner("ray::IDLE", "ray::IDLE") == "ray"
    assert owner("python", "python", "-m", "mlflow", "server") == "mlflow"
    assert owner("python", "uvicorn", "mlflow.server.fastapi_app:app") == "mlflow"
    assert owner("sshd", "sshd") == "other"
    assert owner("array", "python", "array_server.py") == "other"


def test_a_clusters_doors(serve, monkeypatch):
    monkeypatch.setattr(door_checks, "_RAY_PORTS", {})
    address = f"http://127.0.0.1:{serve('ray', guarded=True)}"
    assert not failures(check_cluster(address))
    opened = serve("ray")
    assert f"port {opened}" in failures(check_cluster(f"http://127.0.0.1:{opened}"))
    # The dashboard is guarded, but Ray's client is not.
    monkeypatch.setattr(door_checks, "_RAY_PORTS", {opened: "Ray client"})
    assert "Ray client" in failures(check_cluster(address))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        gone = probe.getsockname()[1]
    assert "nothing answers" in failures(check_cluster(f"http://127.0.0.1:{gone}"))
    assert "no Ray cluster" in failures(check_cluster(f"http://127.0.0.1:{serve('mlflow')}"))
    assert failures(check_cluster("ftp://x"))


def mlflow(port, host="127.0.0.1"):
    return Listener(host, port, 1, "python", ("mlflow", "server"))


def test_an_mlflow_server_of_ones_own(serve):
    def checks(port, exposed=False):
        here = [mlflow(port, "0.0.0.0" if exposed else "127.0.0.1")]
        found = list(check_mlflow(f"http://127.0.0.1:{port}", here))
        # One that no variable names is found as well.
        assert failures(check_mlflow("", here)) == failures(found)
        assert len(found) == 1
        return found

    assert not failures(checks(serve("mlflow")))
    assert "everybody read and delete" in failures(checks(serve("mlflow"), exposed=True))
    assert not failures(checks(serve("mlflow", guarded=True), exposed=True))
    # Bound twice, it is as open as its wider address.
    port = serve("mlflow")
    both = [mlflow(port), mlflow(port, "::")]
    assert "everybody" in failures(check_mlflow("", both)) == failures(check_mlflow("", both[::-1]))


def test_what_answers_as_no_mlflow_server_is_said(serve):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        gone = probe.getsockname()[1]
    for port, said in ((gone, "does not answer"), (serve("ray"), "not as an MLflow server")):
        uri = f"http://me:{SECRET}@127.0.0.1:{port}/"
        (check,) = check_mlflow(uri, [])
        assert check.status == "warn" and said in check.found and SECRET not in check.found
    for uri in ("http://h:99999", "http://h:port", "http://[::1"):
        assert "no address" in failures(check_mlflow(uri, []))


def test_the_command_its_exit_code_and_the_flag(tmp_path, serve):
    environment = os.environ | {"HOME": str(tmp_path), "MY_TOKEN": SECRET}
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "pipelines.cli", "doctor"]
    secure = [*command, "--security", "--json", "--storage", str(tmp_path)]

    def run(*words):
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert SECRET not in done.stdout + done.stderr
        return done

    address = ["--address", f"http://127.0.0.1:{serve('ray')}"]
    done = run(*secure, *address)
    cluster = next(c for c in json.loads(done.stdout) if c["name"] == "cluster")
    assert done.returncode == 1 and cluster["status"] == "fail"
    done = run(*secure, *address, FLAG)
    cluster = next(c for c in json.loads(done.stdout) if c["name"] == "cluster")
    assert cluster["status"] == "warn" and FLAG in cluster["remedy"]
    usage = run(*command, *address)
    assert usage.returncode == 2 and "--security" in usage.stderr


def test_what_is_meant_to_be_open_is_a_warning_but_other_faults_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "short")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    strict = security_checks(tmp_path)
    meant = security_checks(tmp_path, open_is_meant=True)
    assert "RAY_AUTH_MODE=disabled" in failures(strict)
    assert "RAY_AUTH_MODE=disabled" not in failures(meant)
    assert "too short" in failures(meant)
    assert check_storage(tmp_path) in meant
