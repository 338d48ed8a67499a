import http.server
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.security import advisories, door_checks, secret_checks
from cluster.security.advisories import ADVISORIES, Advisory, open_advisories
from cluster.security.door_checks import check_cluster, check_listeners, check_mlflow
from cluster.security.doors import FLAG, Listener
from cluster.security.redact import basic_auth
from cluster.security.report import check_versions, security_checks
from cluster.security.secret_checks import (
    check_environment,
    check_storage,
    check_tokens,
    check_written,
)

TOKEN = "0123456789abcdef" * 4
SECRET = "pLaNt3d-secret-value"


def by_status(checks, status):
    return [check for check in checks if check.status == status]


def failures(checks):
    found = by_status(checks, "fail")
    assert all(check.remedy and "\n" not in check.found + check.remedy for check in found)
    return " | ".join(check.found for check in found)


PATHS = {"mlflow": "/experiments/search", "ray": "/api/jobs/"}


class Server(http.server.BaseHTTPRequestHandler):
    """An MLflow server, a Ray dashboard or a page of metrics, as `self.server.kind` says."""

    def do_GET(self):
        kind, password, checks_host = self.server.kind
        asked = self.headers.get("Authorization", "")
        status, content = 200, "application/json"
        if checks_host and not self.headers["Host"].startswith("127.0.0.1"):
            status = 403
        elif password is not None and asked != f"Basic {basic_auth('admin', password)}":
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

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(kind, password=None, checks_host=True):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
        server.kind = (kind, password, checks_host)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server.server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ray(port, host="0.0.0.0", name="ray::DashboardAgent"):
    return Listener(host, port, 1, name, (name,), True)


def test_ray_ports_on_loopback_and_beyond(serve):
    assert "none is open" in next(iter(check_listeners([]))).found
    checks = list(check_listeners([ray(serve("ray"), "127.0.0.1")]))
    assert not failures(checks) and "loopback alone" in checks[0].found
    checks = list(check_listeners([ray(serve("ray", password="x"))]))
    assert not failures(checks) and "none lets a stranger in" in checks[0].found
    port = serve("ray")
    checks = list(check_listeners([ray(port), ray(serve("ray", password="x"))]))
    assert f"0.0.0.0:{port}" in failures(checks) and checks[0].is_door
    assert "RAY_AUTH_MODE=token" in checks[0].remedy
    metrics = serve("metrics")
    checks = list(check_listeners([ray(metrics)]))
    assert not failures(checks) and str(metrics) in by_status(checks, "warn")[0].found


def test_whose_port_it_is():
    def owner(name, *command):
        return Listener("::", 1, 1, name, command, True).owner

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
    address = f"http://127.0.0.1:{serve('ray', password='x')}"
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


def test_an_mlflow_server_of_ones_own(serve):
    def checks(port, exposed=False, extra=None):
        host = "0.0.0.0" if exposed else "127.0.0.1"
        here = [Listener(host, port, 1, "python", ("mlflow", "server"), True)]
        uri = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
        found = list(check_mlflow(uri | (extra or {}), here))
        # One that no variable names is found as well.
        assert failures(check_mlflow({}, here)) == failures(check_mlflow(uri, here))
        return found

    assert not failures(checks(serve("mlflow")))
    assert "everybody read and delete" in failures(checks(serve("mlflow"), exposed=True))
    assert not failures(checks(serve("mlflow", password="a-good-long-one"), exposed=True))
    known = failures(checks(serve("mlflow", password="password1234")))
    assert "admin / password1234" in known
    assert "DNS rebinding" in failures(checks(serve("mlflow", checks_host=False)))
    guarded = checks(serve("mlflow", password="a-good-long-one", checks_host=False))
    assert "DNS rebinding" in by_status(guarded, "warn")[0].found
    insecure = checks(serve("mlflow"), extra={"MLFLOW_TRACKING_INSECURE_TLS": "true"})
    assert "certificate" in failures(insecure)


def test_a_password_in_the_tracking_address_or_on_an_open_line(serve, monkeypatch):
    port = serve("mlflow", password="a-good-long-one")
    in_url = failures(
        check_mlflow({"MLFLOW_TRACKING_URI": f"http://me:{SECRET}@127.0.0.1:{port}"}, [])
    )
    assert "stands in MLFLOW_TRACKING_URI" in in_url and SECRET not in in_url
    monkeypatch.setattr(door_checks, "is_loopback", lambda host: False)
    environment = {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
        "MLFLOW_TRACKING_PASSWORD": SECRET,
    }
    (open_line,) = [c for c in check_mlflow(environment, []) if "unencrypted" in c.found]
    assert open_line.status == "warn" and SECRET not in open_line.found


def test_tokens_and_their_modes(tmp_path):
    home = {"HOME": str(tmp_path)}
    tmp_path.chmod(0o755)
    assert "none needed" in next(iter(check_tokens(home))).found
    path = tmp_path / ".ray/auth_token"
    path.parent.mkdir(mode=0o700)
    path.write_text(TOKEN)
    path.chmod(0o600)
    assert not failures(check_tokens(home)) and not by_status(check_tokens(home), "warn")
    path.chmod(0o644)
    (warning,) = by_status(check_tokens(home), "warn")  # its folder keeps others out
    assert "0644" in warning.found and warning.remedy == f"chmod 600 {path}"
    path.chmod(0o600)
    path.write_text("secret")
    short = failures(check_tokens(home))
    assert "too short" in short and "secret" not in short.replace("secrets", "")
    path.write_text("a" * 64)
    assert "too short" in failures(check_tokens(home))
    missing = home | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    assert "no file" in failures(check_tokens(missing))
    assert not failures(check_tokens(home | {"RAY_AUTH_TOKEN": TOKEN}))
    off = home | {"RAY_AUTH_TOKEN": TOKEN, "RAY_AUTH_MODE": "disabled"}
    assert "RAY_AUTH_MODE=disabled" in failures(check_tokens(off))


def test_a_token_others_can_read_or_replace(monkeypatch):
    folder = Path("/tmp") / f"tokenpool-test-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        path = folder / "token"
        path.write_text(TOKEN)
        path.chmod(0o644)
        named = {"HOME": "/nonexistent", "RAY_AUTH_TOKEN_PATH": str(path)}
        assert "others can read it" in failures(check_tokens(named))
        path.chmod(0o600)
        assert not failures(check_tokens(named))
        folder.chmod(0o777)
        assert "others can replace" in failures(check_tokens(named))
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        if path.stat().st_uid:
            assert "somebody else" in failures(check_tokens(named))
    finally:
        path.unlink()
        folder.rmdir()


def test_mlflows_files(tmp_path):
    credentials = tmp_path / ".mlflow/credentials"
    credentials.parent.mkdir()
    credentials.write_text("[mlflow]\n")
    credentials.chmod(0o640)
    auth = tmp_path / "basic_auth.ini"
    auth.write_text("[mlflow]\nadmin_password = password1234\n")
    auth.chmod(0o600)
    environment = {"HOME": str(tmp_path), "MLFLOW_AUTH_CONFIG_PATH": str(auth)}
    found = list(check_tokens(environment))
    assert "password everybody knows" in failures(found)
    assert any("0640" in check.found for check in found if check.status in ("warn", "fail"))
    auth.write_text("[mlflow]\nadmin_password = a-good-long-one\n")
    assert "everybody knows" not in failures(check_tokens(environment))


def test_versions_below_a_known_fix():
    table = {one.package: one.fixed for one in ADVISORIES}
    newest = {p: max((o.fixed for o in ADVISORIES if o.package == p), key=advisories.Version)
              for p in table}  # fmt: skip
    assert open_advisories(newest) == [] and not failures(check_versions(newest))
    checks = list(check_versions(newest | {"ray": "2.51.1", "torch": "2.5.0+cpu"}))
    found = failures(checks)
    assert "CVE-2025-62593" in found and "CVE-2026-27482" in found and "CVE-2025-32434" in found
    assert "CVE-2023-48023" not in found
    assert any("install ray 2.54.0" in check.remedy for check in checks)
    assert open_advisories({"ray": "built by hand"})  # cannot be told: named
    assert not open_advisories({"ray": None})
    for one in ADVISORIES:
        assert isinstance(one, Advisory) and one.identifier.startswith(("CVE-", "GHSA-"))


def test_what_is_installed_here_is_beyond_them():
    here = {one.package: advisories.installed(one.package) for one in ADVISORIES}
    assert open_advisories(here) == [] and advisories.installed("no-such-package") is None


def test_secrets_of_the_environment():
    assert "no variable" in next(iter(check_environment({"PATH": "/bin"}))).found
    environment = {
        "MY_API_KEY": SECRET,
        "DATABASE_URL": "postgresql://me:another-secret@h/db",
        "RAY_RUNTIME_ENV": json.dumps({"env_vars": {"HF_TOKEN": "a-third-secret"}}),
    }
    found = list(check_environment(environment))
    text = " ".join(check.found for check in found)
    assert "MY_API_KEY" in text and "DATABASE_URL" in by_status(found, "warn")[0].found
    assert "RAY_RUNTIME_ENV" in failures(found)
    assert not {SECRET, "another-secret", "a-third-secret"} & set(text.replace(",", "").split())


def test_a_secret_in_a_command_line_is_seen(monkeypatch):
    code = "import time; print(1, flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code, SECRET], stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        found = failures(check_environment({"MY_TOKEN": SECRET}))
        assert f"({child.pid})" in found and SECRET not in found
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_secret_in_what_was_written_is_found(tmp_path):
    environment = {"HOME": str(tmp_path), "MY_TOKEN": SECRET}
    folder = tmp_path / "searches/s"
    folder.mkdir(parents=True)
    (folder / "ledger.jsonl").write_text("{}\n")
    assert check_written(tmp_path, environment).status == "ok"
    (folder / "ledger.jsonl").write_text(json.dumps({"reason": f"with {SECRET}"}))
    check = check_written(tmp_path, environment)
    assert check.status == "fail" and "searches/s/ledger.jsonl" in check.found
    assert SECRET not in check.found
    assert check_written(tmp_path, {"HOME": str(tmp_path)}).status == "ok"


def test_a_storage_folder_anybody_may_write_to(tmp_path):
    assert check_storage(tmp_path / "none").status == "ok"
    assert check_storage(tmp_path).status == "ok"
    tmp_path.chmod(tmp_path.stat().st_mode | stat.S_IWOTH)
    check = check_storage(tmp_path)
    assert check.status == "fail" and check.remedy == f"chmod o-w {tmp_path}"


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
    assert secret_checks.check_storage(tmp_path) in meant
