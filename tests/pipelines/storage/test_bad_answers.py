"""An object store that answers 500 or 503, slowly, or breaks off: waited for, and nothing is lost.

The faults are the server's own answers, to whatever pyarrow asks.
"""

import threading
import time
from contextlib import contextmanager

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication

from pipelines.search.ledger import LEDGER_NAME, read_events
from pipelines.search.stored_ledger import StoredLedger
from pipelines.storage.claim import Times
from pipelines.storage.store import ObjectStore, StoreAway, StoreError
from pipelines.storage.working import search_store

CODES = {"500": "InternalError", "503": "SlowDown"}
BODY = "<?xml version='1.0'?><Error><Code>{}</Code><Message>fault</Message></Error>"


class Trouble:
    """What the server does to each request, as long as it is in trouble."""

    def __init__(self, real):
        self._real, self.kind, self.hits = real, None, 0

    def __call__(self, app, environ, start_response):
        kind = self.kind
        if kind is not None:
            self.hits += 1
        if kind in CODES:
            length = int(environ.get("CONTENT_LENGTH") or 0)
            environ["wsgi.input"].read(length)
            start_response(f"{kind} fault", [("Content-Type", "application/xml")])
            return [BODY.format(CODES[kind]).encode()]
        if kind == "slow":
            time.sleep(0.7)
        if kind == "cut":
            raise ConnectionResetError("fault")
        return self._real(app, environ, start_response)


@pytest.fixture
def trouble(server, monkeypatch):
    trouble = Trouble(DomainDispatcherApplication.__call__)
    monkeypatch.setattr(
        DomainDispatcherApplication,
        "__call__",
        lambda app, environ, start: trouble(app, environ, start),
    )
    return trouble


@contextmanager
def for_a_while(trouble, kind, seconds):
    trouble.kind = kind
    timer = threading.Timer(seconds, lambda: setattr(trouble, "kind", None))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        trouble.kind = None


@pytest.mark.parametrize("kind", ["500", "503", "slow", "cut"])
@pytest.mark.fault("object store answering 500, 503, slowly or not to the end")
def test_a_ledger_waits_for_it(directory, trouble, monkeypatch, caplog, kind):
    monkeypatch.setattr("pipelines.search.stored_ledger._PAUSE_SECONDS", 0.2)
    with StoredLedger(directory, search_store(directory), times=Times(60.0, 5.0, 5.0)) as ledger:
        ledger.append("a", n=1)
        with for_a_while(trouble, kind, 8):
            ledger.append("a", n=2)
        assert trouble.hits
        ledger.append("a", n=3)
        store = search_store(directory)
        content = b"".join(store.read(entry.name) for entry in store.entries("ledger"))
    assert content == (directory / LEDGER_NAME).read_bytes()
    assert [event["n"] for event in read_events(directory / LEDGER_NAME)] == [1, 2, 3]
    assert len(caplog.messages) <= 1 and "Traceback" not in caplog.text


@pytest.mark.parametrize("kind", ["500", "503", "cut"])
@pytest.mark.fault("object store answering 500, 503, slowly or not to the end")
def test_what_it_does_not_take_is_told_in_one_line(store, trouble, tmp_path, kind):
    """A worker's upload: it says that the store is away, so that the job is tried again."""
    (tmp_path / "weights").write_bytes(bytes(100_000))
    store.upload(tmp_path / "weights", "before")
    with for_a_while(trouble, kind, 120), pytest.raises(StoreAway) as caught:
        store.upload(tmp_path / "weights", "there/weights")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("storage s3://bucket/")
    assert store.read("there/weights") is None
    store.upload(tmp_path / "weights", "there/weights")
    assert store.read("there/weights") == bytes(100_000)


def test_what_a_person_must_mend_is_not_waited_for(address):
    with pytest.raises(StoreError) as caught:
        ObjectStore("s3://no-such-bucket/runs").write("x", b"")
    assert type(caught.value) is StoreError
