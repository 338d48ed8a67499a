"""An object store that answers 500 or 503, slowly, or breaks off: waited for, and nothing is lost.

The faults are the server's own answers, to whatever pyarrow asks.
"""

import pytest
from stores import for_a_while, in_trouble
from thinning import fast

from pipelines.search.ledger import read_events
from pipelines.search.stored_ledger import StoredLedger
from pipelines.storage.claim import Times
from pipelines.storage.store import ObjectStore, StoreAway, StoreError


@pytest.fixture
def trouble(server, monkeypatch):
    return in_trouble(monkeypatch)


@pytest.mark.parametrize("kind", fast(2, ["503", "cut", "500", "slow"]))
@pytest.mark.fault("object store answering 500, 503, slowly or not to the end")
def test_a_ledger_waits_for_it(search, trouble, monkeypatch, caplog, kind):
    monkeypatch.setattr("pipelines.search.stored_ledger._PAUSE_SECONDS", 0.2)
    with StoredLedger(search, search.store, times=Times(60.0, 5.0, 5.0)) as ledger:
        ledger.append("a", n=1)
        with for_a_while(trouble, kind, 8):
            ledger.append("a", n=2)
        assert trouble.hits
        ledger.append("a", n=3)
        store = search.store
        content = b"".join(store.read(entry.name) for entry in store.entries("ledger"))
    assert content == search.ledger.read_bytes()
    assert [event["n"] for event in read_events(search.ledger)] == [1, 2, 3]
    assert len(caplog.messages) <= 1 and "Traceback" not in caplog.text


@pytest.mark.parametrize("kind", fast(1, ["503", "500", "cut"]))
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
