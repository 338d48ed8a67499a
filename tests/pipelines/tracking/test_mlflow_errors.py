"""Each way MLflow takes no runs ends in one line that is true and says what to do.

The field's script has a folder as the store, an old schema and a server that is down, each with
`register`. Its neighbours here are what else goes wrong with a database file, a server and an
address, and the other places that meet it: `ui`, `track rebuild`, the driver's own thread.
"""

import logging
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ledgers
import pytest
from mirrored import dump, send, write
from servers import QuietHandler, address_of, serving

from pipelines.errors import UserError
from pipelines.search.ledger import Ledger
from pipelines.search.state import SearchState, load_state
from pipelines.storage.search_files import Search
from pipelines.tracking.mirror import LedgerMirror
from pipelines.tracking.mlflow_errors import explain, told
from pipelines.tracking.mlflow_tracker import MlflowTracker
from pipelines.tracking.registry import register_published
from pipelines.tracking.tracking_store import TrackingStore, tracking_store
from pipelines.tracking.upkeep import catch_up, rebuild


@pytest.fixture
def search(folder: Path, monkeypatch: pytest.MonkeyPatch) -> SearchState:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    write(folder, ledgers.events())
    return load_state(Search(folder, "digits"))


def refusal(folder: Path, store: TrackingStore) -> str:
    """The one line, which `register`, `ui` and `track rebuild` all end with."""
    state = load_state(Search(folder, "digits"))
    lines = set()
    for use in (
        lambda: register_published(Search(folder, "digits"), state, store),
        lambda: catch_up(folder, "digits", store, "http://127.0.0.1:5000"),
        lambda: rebuild(Search(folder, "digits"), store),
    ):
        with pytest.raises(UserError) as refused:
            use()
        assert refused.value.exit_code == 1
        lines.add(str(refused.value))
    (line,) = lines
    assert "\n" not in line and "\x1b" not in line and "Traceback" not in line
    return line


@pytest.mark.parametrize("uri", ["file:{}/mlruns", "{}/mlruns", "file://{}/mlruns", "mlruns"])
def test_a_folder(
    search: SearchState, folder: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    """The script's, and other ways of writing it."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(folder))
    line = refusal(folder, tracking_store(folder))
    assert "is a folder" in line and "sqlite:////" in line and "migrate-filestore" in line
    assert "answer" not in line and "reach" not in line


def set_schema(folder: Path, revision: str) -> None:
    with sqlite3.connect(folder / "mlflow.db") as base:
        base.execute("update alembic_version set version_num = ?", [revision])


def test_a_database_of_an_older_mlflow(search: SearchState, folder: Path) -> None:
    set_schema(folder, "bd07f7e963c5")
    line = refusal(folder, tracking_store(folder))
    assert f"mlflow db upgrade sqlite:///{folder}/mlflow.db" in line and "older" in line


def test_a_database_of_a_newer_mlflow(search: SearchState, folder: Path) -> None:
    """A neighbour that must not be upgraded: what it was written by is not known here."""
    set_schema(folder, "ffffffffffff")
    line = refusal(folder, tracking_store(folder))
    assert "upgrade" not in line and "install that one, or move the database away" in line


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as base:
        base.execute("create table experiments (a)")


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


BROKEN = {
    "no database": (
        lambda path: path.write_text("not a database " * 99),
        "is broken: move it away",
    ),
    "cut short": (cut, "is broken: move it away"),
    "of another program": (foreign, "is not a database that MLflow can use"),
    "a folder": (folder_instead, "cannot be opened: is it a file"),
}


@pytest.mark.parametrize(("harm", "says"), BROKEN.values(), ids=BROKEN.keys())
def test_a_database_that_is_none(search: SearchState, folder: Path, harm, says: str) -> None:
    harm(folder / "mlflow.db")
    assert says in refusal(folder, tracking_store(folder))


@contextmanager
def answering(code: int, body: bytes, port: int = 0) -> Iterator[str]:
    class Page(QuietHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

    with serving(Page, port=port) as server:
        yield address_of(server)


@pytest.mark.parametrize(
    ("code", "body", "says"),
    [
        (401, b"You are not authenticated", "refuses access: set MLFLOW_TRACKING_USERNAME"),
        (403, b"Permission denied", "does not let this user do that"),
        (404, b"<html>", "is no MLflow server"),
        (200, b"<html>hello", "is no MLflow server"),
        (302, b"", "is no MLflow server"),
        (500, b"boom", "answers with error 500: its own log says why"),
        (503, b"later", "answers with error 503"),
        (500, b'{"error_code": "INTERNAL_ERROR", "message": "a\\nb"}', "answers with error 500"),
    ],
)
def test_a_server_that_answers(search: SearchState, folder: Path, code, body, says: str) -> None:
    with answering(code, body) as url:
        line = refusal(folder, TrackingStore(url))
    assert says in line and url in line
    assert "does not answer" not in line


def test_a_server_that_does_not(search: SearchState, folder: Path) -> None:
    for url in ("http://127.0.0.1:9", "http://no.such.host.invalid:5000"):
        line = refusal(folder, TrackingStore(url))
        assert ("does not answer" in line or "no host of that name" in line) and url in line
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes connections, says nothing
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(UserError, match="does not answer: is it up"):
            catch_up(folder, "digits", TrackingStore(url), url)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("htp://127.0.0.1:5000", "which MLflow does not take"),
        ("s3://bucket/mlruns", "which MLflow does not take"),
        ("mysql+pymysql://u:geheim-1@127.0.0.1:9/x", "`pip install pymysql`"),
    ],
)
def test_an_address_that_is_none(search: SearchState, folder: Path, monkeypatch, uri, says) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    line = refusal(folder, tracking_store(folder))
    assert says in line and "geheim" not in line


def test_the_driver_says_it_once_and_goes_on(
    folder: Path, search: SearchState, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(folder / "searches")
    search = Search(folder, "digits")
    store = TrackingStore(f"file:{folder}/mlruns", folder / "mlartifacts")
    with (
        caplog.at_level(logging.WARNING),
        Ledger(search) as ledger,
        MlflowTracker(search, store, retry_every=0.05) as tracker,
    ):
        for row in ledgers.events():
            ledger.append(
                row["event"], **{k: v for k, v in row.items() if k not in ("event", "time")}
            )
            tracker.notify()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "the search goes on" in said[0] and "is a folder" in said[0]
    assert "nothing is lost" in said[1]
    # Mended, all is there.
    mended = LedgerMirror(search, tracking_store(folder))
    mended.read()
    mended.send(with_artifacts=False)
    assert dump(folder)["t001"]["status"] == "FINISHED"


def test_what_is_not_mlflows_is_no_matter_of_the_store(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), told(tracking_store(folder), all_errors=False):
        _ = 1 / 0
    assert "ZeroDivisionError" in explain(tracking_store(folder), ZeroDivisionError("by zero"))


@pytest.mark.parametrize("name", ["50 %", "a%20b", "what?x=1", "a#b", "größe ★", "a&b;c", "it's"])
def test_any_name_of_a_storage_folder(folder: Path, tmp_path: Path, name: str) -> None:
    """Characters that mean something in addresses, which a database and artifacts have."""
    root = tmp_path / "here" / name
    root.mkdir(parents=True)
    shutil.copy(folder / "mlflow.db", root / "mlflow.db")
    rows = ledgers.events()
    rows[0]["config"]["data"]["path"] = str(root / "data")
    mirror = send(write(root, rows), root, artifacts=True)
    assert dump(root)["t001"]["status"] == "FINISHED"
    with sqlite3.connect(root / "mlflow.db") as base:
        assert base.execute("select count(*) from runs").fetchone() == (10,)
    assert "front.html" in {found.path for found in mirror.client.list_artifacts(mirror.run_id(""))}
    assert list(root.rglob("mlartifacts/digits/*/artifacts/front.html"))
    assert [path.name for path in root.parent.iterdir()] == [name]  # and nothing beside it
