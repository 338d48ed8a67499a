"""An MLflow server on loopback over a storage folder's own store."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from pipelines.errors import UserError
from pipelines.track.store import TrackingStore

LOOPBACK = "127.0.0.1"


def start_server(store: TrackingStore, port: int, log: Path) -> subprocess.Popen[bytes]:
    """Starts MLflow on loopback and returns once it answers.

    It is the default (uvicorn) server: with `--gunicorn-opts` MLflow's check of the Host header
    and of foreign origins would be off, and any web page open on this machine could read and
    delete runs (DNS rebinding).

    Args:
        store: A local store.
        port: TCP port on 127.0.0.1.
        log: File for the server's output.

    Raises:
        UserError: The port is in use, or the server did not come up.
    """
    if not store.is_local or store.artifact_root is None:
        raise UserError(f"MLflow already runs at {store.shown}: open that address")
    check_port(port)
    command = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", store.uri]
    command += ["--artifacts-destination", str(store.artifact_root)]
    # Nothing inherited may turn the host check off or open it to others.
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_SERVER_")
    }
    environment |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
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
        if _answers(port):
            return process
        time.sleep(0.2)
    stop_server(process)
    raise UserError(f"MLflow did not answer on port {port} within 90 s: see {log}", exit_code=1)


def stop_server(process: subprocess.Popen[bytes]) -> None:
    """Ends the server and the workers it started."""
    import signal

    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def check_port(port: int) -> None:
    """Makes sure that a port on loopback is free.

    Raises:
        UserError: It is in use, or may not be used.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(
                f"port {port} cannot be used ({reason}): choose another with --port", exit_code=1
            ) from None


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
