"""An MLflow server over a storage folder's own store, on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from pathlib import Path

from cluster.security.doors import plain_opener
from pipelines.errors import UserError
from pipelines.tracking.tracking_store import TrackingStore

LOOPBACK = "127.0.0.1"
_ANY_HOST = ("0.0.0.0", "::")
# Options that MLflow takes from the environment. Inherited ones could switch its host check off
# (gunicorn), bind it elsewhere (uvicorn's options), or show other runs than these.
_NOT_INHERITED = (
    "MLFLOW_SERVER_", "MLFLOW_GUNICORN_OPTS", "MLFLOW_UVICORN_OPTS", "MLFLOW_HOST", "MLFLOW_PORT",
    "MLFLOW_WORKERS", "MLFLOW_STATIC_PREFIX", "MLFLOW_ARTIFACTS_ONLY", "MLFLOW_SERVE_ARTIFACTS",
    "MLFLOW_EXPOSE_PROMETHEUS", "MLFLOW_DEFAULT_ARTIFACT_ROOT", "MLFLOW_REGISTRY_STORE_URI",
    "MLFLOW_READ_REPLICA_BACKEND_STORE_URI",
)  # fmt: skip


def start_server(
    store: TrackingStore, port: int, log: Path, host: str = LOOPBACK
) -> subprocess.Popen[bytes]:
    """Starts MLflow over a local store and returns once it answers.

    It is the default (uvicorn) server: with `--gunicorn-opts` MLflow's check of the Host header
    and of foreign origins would be off, and any web page open on this machine could read and
    delete runs (DNS rebinding). Whoever reaches `host` can read and delete runs.

    Raises:
        UserError: The port is in use, or the server did not come up; its output is in `log`.
    """
    if not store.is_local or store.artifact_root is None:
        raise UserError(f"MLflow already runs at {store.shown}: open that address")
    check_port(port, host)
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    command += ["--workers", "1", "--artifacts-destination", store.artifact_root.as_uri()]
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(_NOT_INHERITED)
    }
    environment |= {
        # Not in the command line, which every user of this machine can read: a database's address
        # may hold a password.
        "MLFLOW_BACKEND_STORE_URI": store.uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as output:
        # In a session of its own, so that Ctrl-C reaches it through us, once.
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UserError(f"MLflow did not start: see {log}", exit_code=1)
        if _answers(port, LOOPBACK if host in _ANY_HOST else host):
            return process
        time.sleep(0.2)
    stop_server(process)
    raise UserError(f"MLflow did not answer on port {port} within 90 s: see {log}", exit_code=1)


def stop_server(process: subprocess.Popen[bytes]) -> None:
    """Ends the server and the workers it started."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def check_port(port: int, host: str = LOOPBACK) -> None:
    """Makes sure that a port is free.

    Raises:
        UserError: It is in use, or may not be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(
                f"port {port} cannot be used ({reason}): choose another with --port", exit_code=1
            ) from None


def url_host(host: str) -> str:
    """A host as it stands in an address."""
    return f"[{host}]" if ":" in host else host


def _answers(port: int, host: str) -> bool:
    try:
        with plain_opener().open(f"http://{url_host(host)}:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
