"""The shared MLflow server: what `serve.py` refuses, and the real thing over PostgreSQL."""

import importlib.util
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import requests

from cluster.session import free_port

SERVE = Path(__file__).parents[2] / "cluster/mlflow/serve.py"
NAMES = ("postgres_password", "mlflow_admin_password", "mlflow_secret_key")


def load_serve():
    spec = importlib.util.spec_from_file_location("mlflow_serve", SERVE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


serve = load_serve()


@pytest.fixture
def settings(tmp_path):
    """A complete set-up, each secret in its file."""
    found = {
        "POSTGRES_HOST": "db",
        "MLFLOW_ALLOWED_HOSTS": "localhost:*,127.0.0.1:*",
        "MLFLOW_RUN_DIR": str(tmp_path),
        "MLFLOW_ARTIFACTS": str(tmp_path / "artifacts"),
    }
    for name in NAMES:
        (tmp_path / name).write_text(secrets.token_hex(24) + "\n")
        found[f"{name.upper()}_FILE"] = str(tmp_path / name)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "content", [None, "", "short", "password1234password", "aaaaaaaaaaaaaaaaaaaa"]
)
def test_a_secret_that_is_missing_or_can_be_guessed_is_named(settings, tmp_path, name, content):
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(serve.Refused, match=f"secret {name} .*openssl rand") as refused:
        serve.prepare(settings)
    assert "\n" not in str(refused.value)
    # Not even a bad one is repeated on the screen.
    assert not content or content not in str(refused.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("POSTGRES_HOST", ""), ("MLFLOW_ALLOWED_HOSTS", ""), ("MLFLOW_ALLOWED_HOSTS", "a, *")],
)
def test_a_setting_that_is_missing_or_too_wide_is_named(settings, setting, value):
    with pytest.raises(serve.Refused, match=setting):
        serve.prepare(settings | {setting: value})


def test_secrets_go_to_private_files_and_never_to_the_command_line(settings, tmp_path):
    command, environment = serve.prepare(settings)
    plain = [(tmp_path / name).read_text().strip() for name in NAMES]
    assert not any(secret in word for secret in plain for word in command)
    assert command[:2] == ["mlflow", "server"] and "basic-auth" in command
    for name in ("pgpass", "auth.ini"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert plain[0] in (tmp_path / "pgpass").read_text()
    assert not any(secret in (tmp_path / "auth.ini").read_text() for secret in plain)
    assert environment["MLFLOW_AUTH_ADMIN_PASSWORD"] == plain[1]


@contextmanager
def postgres(password):
    """A PostgreSQL of our own on loopback; it refuses to run as root, so it runs as nobody."""
    folder = Path(tempfile.mkdtemp(prefix="tokenpool-pg-", dir="/tmp"))
    (folder / "pw").write_text(password)
    as_nobody = []
    if os.getuid() == 0:
        as_nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        for path in (folder, folder / "pw"):
            shutil.chown(path, "nobody", "nogroup")
    initdb = ["initdb", "-D", folder / "data", "-U", "mlflow", "--pwfile", folder / "pw"]
    subprocess.run(
        [*as_nobody, *initdb, "--auth=scram-sha-256", "--no-sync"],
        check=True,
        capture_output=True,
        cwd="/",
    )
    port = free_port()
    server = subprocess.Popen(
        [*as_nobody, "postgres", "-D", folder / "data", "-p", str(port), "-k", folder, "-F"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    try:
        yield port
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
        shutil.rmtree(folder)


def wait_for(server, url):
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert server.poll() is None, server.stderr.read()
        try:
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.5)
    raise AssertionError("the server does not answer")


@pytest.mark.slow  # a database and a server of several processes, a minute on a busy machine
def test_the_real_server_over_postgresql(settings, tmp_path):
    for module in ("psycopg", "flask_wtf"):
        pytest.importorskip(module, reason=f"{module}: see cluster/mlflow/requirements.txt")
    if shutil.which("initdb") is None:
        pytest.skip("no PostgreSQL server on this machine")
    database, admin = ((tmp_path / name).read_text().strip() for name in NAMES[:2])
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (tmp_path / "artifacts").mkdir()
    with postgres(database) as database_port:
        environment = {
            **os.environ,
            **settings,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(database_port),
            "MLFLOW_BIND": "127.0.0.1",
            "MLFLOW_BIND_PORT": str(port),
        }
        (tmp_path / "wrong").write_text(secrets.token_hex(24))
        wrong = subprocess.run(
            [sys.executable, SERVE],
            env=environment | {"POSTGRES_PASSWORD_FILE": str(tmp_path / "wrong")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert wrong.returncode == 2 and "does not let us in" in wrong.stderr
        assert wrong.stderr.count("\n") == 1

        server = subprocess.Popen(
            [sys.executable, SERVE],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            wait_for(server, url)
            listing = f"{url}/api/2.0/mlflow/experiments/search?max_results=1"
            assert requests.get(listing, timeout=60).status_code == 401
            for guess in ("password1234", "admin", database):
                answer = requests.get(listing, auth=("admin", guess), timeout=60)
                assert answer.status_code == 401
            assert requests.get(listing, auth=("admin", admin), timeout=60).status_code == 200
            foreign = requests.get(
                listing, auth=("admin", admin), headers={"Host": "evil.example"}, timeout=60
            )
            assert foreign.status_code == 403
            # A driver logs to it with name and password from its environment.
            code = (
                "import mlflow; mlflow.set_experiment('e')\n"
                "with mlflow.start_run():\n"
                "    mlflow.log_metric('gmacs', 1.5); mlflow.log_text('x', 'a.txt')\n"
            )
            subprocess.run(
                [sys.executable, "-c", code],
                env=os.environ
                | {
                    "MLFLOW_TRACKING_URI": url,
                    "MLFLOW_TRACKING_USERNAME": "admin",
                    "MLFLOW_TRACKING_PASSWORD": admin,
                },
                check=True,
                capture_output=True,
            )
            assert list((tmp_path / "artifacts").rglob("a.txt"))
            processes = [psutil.Process(server.pid)]
            processes += processes[0].children(recursive=True)
            for process in processes:
                line = " ".join(process.cmdline())
                assert database not in line and admin not in line
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)
