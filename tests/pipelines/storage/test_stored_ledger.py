"""A ledger in an object store: nothing that was recorded is lost, whatever becomes of a machine."""

import json
import shutil

import ledgers
import pytest

from pipelines.errors import UserError
from pipelines.search import refresh as refresh_module
from pipelines.search.driver import driver_runs
from pipelines.search.halt import read_request, request_stop, withdraw_request
from pipelines.search.ledger import Ledger, read_events
from pipelines.search.recorder import Recorder
from pipelines.search.refresh import refresh
from pipelines.search.state import fold, load_state, search_names
from pipelines.search.stored_ledger import StoredLedger, open_ledger
from pipelines.storage import segments
from pipelines.storage.claim import LostClaimError, Times
from pipelines.storage.search_files import Search
from pipelines.storage.store import ObjectStore, StoreError
from pipelines.storage.working import open_root

QUICK = Times(lease=3.0, beat=0.4, look=0.1)
CREATED = {
    "config": ledgers.config(),
    "config_hash": "x",
    "num_classes": 10,
    "bases": [{"width": 32, "num_heads": 2, "gmacs": 0.1}],
}


def events(search):
    return list(read_events(search.ledger))


def numbers(search):
    return [event["n"] for event in events(search)]


def open_quick(search, **options):
    return StoredLedger(search, search.store, times=QUICK, **options)


def killed(ledger):
    """Ends a driver as SIGKILL does, as far as one process can."""
    ledger._claim._closing.set()
    ledger._claim._thread.join()
    ledger._writer.shutdown()
    ledger._file.close()
    ledger._lock.release()
    store, name = ledger.search.store, ledger._claim._driver.name
    claim = json.loads(store.read(name)) | {"pid": 2**22 + 1}
    store.write(name, json.dumps(claim).encode())


def test_a_folder_that_stands_for_itself_has_a_plain_ledger(tmp_path):
    with open_ledger(Search(tmp_path / "runs", "pets")) as ledger:
        assert type(ledger) is Ledger


def test_each_batch_is_an_object_before_it_counts(search, server):
    with open_ledger(search) as ledger:
        assert isinstance(ledger, StoredLedger)
        ledger.append("a", n=1)
        ledger.append_all([("b", {"n": 2}), ("c", {"n": 3})])
        store = search.store
        contents = [store.read(entry.name) for entry in store.entries("ledger")]
        assert b"".join(contents) == (search.ledger).read_bytes()
        assert [len(content.splitlines()) for content in contents] == [1, 2]
    assert numbers(search) == [1, 2, 3]


@pytest.mark.parametrize("left", ["whole", "torn", "short", "nothing"])
def test_it_goes_on_whatever_is_left_of_the_folder(search, left):
    with open_quick(search) as ledger:
        ledger.append("a", n=1), ledger.append("a", n=2)
    with open_quick(search) as ledger:
        ledger.append("a", n=3)
        killed_at = ledger
        killed(killed_at)
        ledger._writer, ledger._file = _Nothing(), _Nothing()
    path = search.ledger
    if left == "torn":
        with path.open("ab") as file:
            file.write(b'{"event":"a","ti')  # put by nobody: it never happened
    elif left == "short":
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif left == "nothing":
        shutil.rmtree(search.folder)
    with open_quick(search) as ledger:
        assert numbers(search) == [1, 2, 3]
        ledger.append("a", n=4)
    assert numbers(search) == [1, 2, 3, 4]


class _Nothing:
    def shutdown(self, wait=True):
        pass

    def close(self):
        pass


@pytest.mark.fault("two drivers of different machines on one search")
def test_two_drivers_of_different_machines(search, address, monkeypatch, tmp_path):
    with open_quick(search) as ledger:
        ledger.append("a", n=1)
        monkeypatch.setenv("TOKENPOOL_CACHE", str(tmp_path / "other-machine"))
        other = Search.open(address, "pets")
        assert driver_runs(other)
        with pytest.raises(UserError, match="already run by"):
            open_quick(other)
        refresh(other)
        assert numbers(other) == [1]
        ledger.append("a", n=2)
    assert not driver_runs(other)
    with open_quick(other) as ledger:
        assert numbers(other) == [1, 2]


@pytest.mark.fault("driver cut off and replaced: it is fenced")
@pytest.mark.parametrize("successor_ends", [False, True])
def test_a_driver_that_was_replaced_can_record_nothing_more(
    search, address, monkeypatch, tmp_path, successor_ends
):
    ledger = open_quick(search)
    ledger.append("a", n=1)
    ledger._claim._closing.set()  # it hangs
    ledger._claim._thread.join()
    store, name = search.store, ledger._claim._driver.name
    store.write(name, store.read(name).replace(b'"machine": "', b'"machine": "other '))
    monkeypatch.setenv("TOKENPOOL_CACHE", str(tmp_path / "other-machine"))
    other = Search.open(address, "pets")
    if successor_ends:
        with open_quick(other) as successor:
            successor.append("a", n=2)
        with pytest.raises(LostClaimError):
            ledger.append("a", n=-2)
        assert numbers(search) == [1]
        refresh(other)
        assert numbers(other) == [1, 2]
        ledger.close()
        return
    with open_quick(other) as successor:
        successor.append("a", n=2)
        with pytest.raises(LostClaimError):
            ledger.append("a", n=-2)
        with pytest.raises(LostClaimError):
            ledger.append("a", n=-3)
        # What it had on its way comes late, under its own name.
        store.write(segments.Segment(3, 3, 1).name, b'{"event":"a","time":1,"n":-4}\n')
        successor.append("a", n=3)
    refresh(other)
    assert numbers(other) == [1, 2, 3]
    ledger.close()


@pytest.mark.fault("object store away for a while")
def test_a_store_that_is_away_for_a_while_is_waited_for(search, monkeypatch):
    monkeypatch.setattr("pipelines.search.stored_ledger._PAUSE_SECONDS", 0.01)
    write, failures = ObjectStore.write, [3]

    def flaky(self, name, content):
        if name.startswith("ledger/") and failures[0]:
            failures[0] -= 1
            raise StoreError("storage s3://x: nothing answers")
        write(self, name, content)

    monkeypatch.setattr(ObjectStore, "write", flaky)
    with open_quick(search) as ledger:
        ledger.append("a", n=1)
    assert failures == [0] and numbers(search) == [1]


@pytest.mark.fault("object store away for good")
def test_one_that_stays_away_ends_the_driver_and_loses_nothing(search, monkeypatch):
    monkeypatch.setattr("pipelines.search.stored_ledger._PAUSE_SECONDS", 0.01)
    with open_quick(search, patience=0.1) as ledger:
        ledger.append("a", n=1)
        write = ObjectStore.write

        def away(self, name, content):
            raise StoreError("storage s3://x: nothing answers")

        monkeypatch.setattr(ObjectStore, "write", away)
        with pytest.raises(UserError, match="type the same command to go on") as found:
            ledger.append("a", n=2)
        assert found.value.exit_code == 1
        assert numbers(search) == [1]  # what did not get there is not in the file either
        monkeypatch.setattr(ObjectStore, "write", write)
        with pytest.raises(UserError):
            ledger.append("a", n=3)  # what is there is not known for sure any more
    with open_quick(search):
        assert numbers(search) == [1]


def test_a_request_to_stop_reaches_the_driver_and_is_withdrawn(
    search, address, monkeypatch, tmp_path
):
    with open_quick(search) as ledger:
        ledger.append("created", **CREATED)
        monkeypatch.setenv("TOKENPOOL_CACHE", str(tmp_path / "other-machine"))
        other = Search.open(address, "pets")
        load_state(other)
        request_stop(other)
        for _ in range(100):
            if read_request(search) is not None:
                break
            ledger._claim._closing.wait(0.05)
        assert read_request(search) == read_request(other)
        withdraw_request(search)
    refresh(other)
    assert read_request(other) is None


def test_states_names_and_imported_fronts_are_found_from_an_empty_machine(
    search, address, monkeypatch, tmp_path
):
    store = search.store
    with open_quick(search) as ledger:
        recorder = Recorder(ledger, fold("pets", [], search))
        recorder.add("created", **CREATED)
        # As Ray names it, and as a loaded base is.
        place = f"{store.path}/jobs/base-w32/epoch-0003/model"
        recorder.add("base_done", width=32, checkpoint=place, top1_minival=0.9)
        assert events(search)[-1]["checkpoint"] == "jobs/base-w32/epoch-0003/model"
        assert (
            recorder.state.base(32).checkpoint == f"{store.address}/jobs/base-w32/epoch-0003/model"
        )
        search.outside.mkdir()
        (search.outside / "tome.json").write_text("{}")
        refresh_module.send_outside(search)
    monkeypatch.setenv("TOKENPOOL_CACHE", str(tmp_path / "other-machine"))
    root = open_root(address)
    assert search_names(root) == ["pets"]
    state = load_state(Search(root, "pets"))
    assert state.base(32).checkpoint == f"{store.address}/jobs/base-w32/epoch-0003/model"
    assert (root / "searches/pets/outside/tome.json").read_text() == "{}"
    with pytest.raises(UserError, match=f"no search named pats under {address}: there is pets"):
        load_state(Search(root, "pats"))
    assert not (root / "searches" / "pats").exists()
