"""`tokenpool ui`: loopback only, host check on, a port in use said in one line."""

import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from cluster.security.door_checks import check_mlflow
from cluster.security.doors import listeners
from pipelines.commands.ui_command import ui
from pipelines.errors import UserError
from pipelines.tracking.mlflow_server import check_port, start_server, stop_server
from pipelines.tracking.tracking_store import TrackingStore, tracking_store


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} cannot be used .*--port") as caught:
            check_port(port)
    assert caught.value.exit_code == 1
    with pytest.raises(UserError, match="port 99999 cannot be used"):
        check_port(99999)


def test_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no search under"):
        ui(None, 5000, tmp_path)
    with pytest.raises(UserError, match="no search named nothing"):
        ui("nothing", 5000, tmp_path)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_beyond_loopback_only_if_it_is_meant(tmp_path: Path, host: str) -> None:
    with pytest.raises(UserError, match=r"--i-know-this-is-open") as caught:
        ui(None, 5000, tmp_path, host)
    message = str(caught.value)
    assert caught.value.exit_code == 2 and "ssh -L 5000:" in message and "\n" not in message
    with pytest.raises(UserError, match="no search under"):  # one step further
        ui(None, 5000, tmp_path, host, True)


def test_a_databases_password_is_not_in_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def start(command: list[str], env: dict[str, str], **_: object) -> None:
        seen.append((" ".join(command), env))
        raise RuntimeError("enough")

    monkeypatch.setattr("subprocess.Popen", start)
    monkeypatch.setenv("MLFLOW_UVICORN_OPTS", "--host 0.0.0.0")
    monkeypatch.setenv("MLFLOW_GUNICORN_OPTS", "--bind 0.0.0.0")
    store = TrackingStore("postgresql://u:plantedSecret1@127.0.0.1/db", tmp_path / "artifacts")
    with pytest.raises(RuntimeError, match="enough"):
        start_server(store, free_port(), tmp_path / "server.log")
    ((command, environment),) = seen
    assert "planted" not in command and environment["MLFLOW_BACKEND_STORE_URI"] == store.uri
    assert not {"MLFLOW_UVICORN_OPTS", "MLFLOW_GUNICORN_OPTS"} & environment.keys()
    assert (tmp_path / "server.log").stat().st_mode & 0o077 == 0


def test_a_shared_server_is_not_started_again() -> None:
    with pytest.raises(UserError, match="MLflow already runs at https://mlflow"):
        start_server(TrackingStore("https://mlflow.example.org"), 5000, Path("unused"))


@pytest.mark.slow  # MLflow's server takes ten seconds and more to come up
def test_the_server_refuses_foreign_hosts_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Someone's environment would switch the check off.
    monkeypatch.setenv("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", "true")
    monkeypatch.setenv("MLFLOW_GUNICORN_OPTS", "--timeout 60")
    monkeypatch.setenv("MLFLOW_HOST", "0.0.0.0")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    port = free_port()
    process = start_server(tracking_store(tmp_path), port, tmp_path / "server.log")
    try:
        address = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1"
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert answer.status == 200
        foreign = urllib.request.Request(address, headers={"Host": "evil.example.org"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(foreign, timeout=30)
        assert refused.value.code == 403
        # What a web page elsewhere could have a browser send.
        elsewhere = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/create",
            data=b'{"name": "planted"}',
            headers={"Origin": "http://evil.example.org", "Content-Type": "text/plain"},
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(elsewhere, timeout=30)
        assert refused.value.code == 403
        found = {one.host for one in listeners() if one.port == port}
        assert found == {"127.0.0.1"}
        checks = list(check_mlflow("", [one for one in listeners() if one.port == port]))
        assert [check.status for check in checks] == ["ok", "ok"], checks
        with pytest.raises(UserError, match=f"port {port} cannot be used"):
            check_port(port)
    finally:
        stop_server(process)
    check_port(port)
