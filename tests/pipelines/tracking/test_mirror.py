"""MLflow follows the ledger: the same runs whatever happens on the way."""

import json
import time
from pathlib import Path
from typing import Any

import ledgers
import pytest
from mirrored import dump, send, write
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipelines.errors import UserError
from pipelines.search.ledger import Ledger
from pipelines.storage.search_files import Search
from pipelines.tracking.mirror import LedgerMirror
from pipelines.tracking.mlflow_tracker import MlflowTracker
from pipelines.tracking.tracking_store import TrackingStore, tracking_store
from pipelines.tracking.upkeep import catch_up, rebuild


def test_what_a_finished_search_looks_like(expected: dict[str, Any]) -> None:
    runs = expected
    assert runs.keys() == {"parent", "dense-96", "dense-64", *(t[0] for t in ledgers.TRIALS)}
    statuses = {name: run["status"] for name, run in runs.items()}
    assert statuses.pop("t005") == "KILLED"
    assert statuses.pop("t007") == "FAILED"
    assert set(statuses.values()) == {"FINISHED"}
    pareto = {name for name, run in runs.items() if run["tags"].get("pareto") == "true"}
    assert pareto == set(ledgers.FRONT)
    t001 = runs["t001"]
    assert t001["params"]["k01"] == "48"
    assert t001["params"]["k06"] == "8"
    assert len(t001["params"]) <= 10
    assert [(s, v) for s, v, _ in t001["metrics"]["top1_minival"]] == [
        (1, 0.90),
        (2, 0.95),
        (3, 0.965),
    ]
    assert t001["metrics"]["top1_val"][0][:2] == (3, 0.961)
    volumes = [value for _, value, _ in runs["parent"]["metrics"]["hypervolume"]]
    assert volumes == sorted(volumes)
    assert runs["parent"]["tags"]["config_hash"] == "0123456789ab"
    assert runs["parent"]["tags"]["dataset"] == t001["tags"]["dataset"] == "digits"


def test_killed_after_any_event_it_ends_the_same(folder: Path, expected: dict[str, Any]) -> None:
    rows = ledgers.events()
    # A driver that dies again and again, each time with a cursor behind what MLflow has taken.
    for cut in (1, 4, 9, 16, 23, 31, len(rows)):
        search = write(folder, rows[:cut])
        cursor = search.mlflow_cursor
        before = cursor.read_text() if cursor.exists() else None
        send(search, folder)
        if cut % 2 and before is not None:
            cursor.write_text(before)
    assert dump(folder) == expected


def test_a_call_that_fails_half_way_loses_and_doubles_nothing(
    folder: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ledgers.events()
    mirror = LedgerMirror(write(folder, rows), tracking_store(folder))
    mirror.read()
    log_batch, calls = MlflowClient.log_batch, iter(range(1000))

    def flaky(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        taken = log_batch(self, *args, **kwargs)
        if next(calls) % 3 == 1:  # the answer is lost after the work was done
            raise MlflowException("connection reset")
        return taken

    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    failures = 0
    while not mirror.caught_up:
        try:
            mirror.send(with_artifacts=False)
        except MlflowException:
            failures += 1
    assert failures >= 3
    assert dump(folder) == expected


def test_repeated_epochs_are_logged_once(folder: Path) -> None:
    rows = ledgers.events(complete=False)
    at = next(i for i, row in enumerate(rows) if row["event"] == "trial_report")
    again = [{**row, "time": row["time"] + 0.5} for row in rows[at : at + 2]]
    send(write(folder, [*rows[: at + 2], *again, *rows[at + 2 :]]), folder)
    steps = [step for step, _, _ in dump(folder)["t001"]["metrics"]["loss"]]
    assert steps == [1, 2, 3]


def test_rebuilt_from_the_ledger_it_equals_the_original(folder: Path) -> None:
    send(write(folder, ledgers.events()), folder, artifacts=True)
    original = dump(folder)
    assert rebuild(Search(folder, "digits"), tracking_store(folder)) == 10
    assert dump(folder) == original


def test_rebuild_waits_for_a_running_driver(folder: Path) -> None:
    search = write(folder, ledgers.events())
    with (
        Ledger(search),
        pytest.raises(UserError, match="search digits is running and logs by itself"),
    ):
        rebuild(search, tracking_store(folder))


def test_the_front_lies_on_the_parent(folder: Path) -> None:
    mirror = send(write(folder, ledgers.events()), folder, artifacts=True)
    client = MlflowClient(tracking_uri=tracking_store(folder).uri)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    parent = client.search_runs([experiment.experiment_id], "tags.`tokenpool.kind` = 'search'")[0]
    names = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert names == {"config.yaml", "front.csv", "front.html", "front.png", "results.parquet"}
    note = parent.data.tags["mlflow.note.content"]
    assert "6 of them on the front" in note
    assert "| t003 | 64 | 48 40 32 24 16 8 | 0.014 | 30 | 92.00 | – |" in note
    base = "http://127.0.0.1:5000"
    assert mirror.parent_url(base) == (
        f"{base}/#/experiments/{experiment.experiment_id}/runs/{parent.info.run_id}"
        "?workflowType=machine_learning"
    )


def test_runs_of_a_killed_driver_are_ended_and_go_on_after_a_resume(folder: Path) -> None:
    rows = ledgers.events(complete=False)
    at = next(i for i, row in enumerate(rows) if row["event"] == "trial_report") + 2
    search = write(folder, rows[:at])
    store = tracking_store(folder)
    send(search, folder)
    assert dump(folder)["t001"]["status"] == "RUNNING"
    page = catch_up(folder, "digits", store, "http://127.0.0.1:5000")
    assert page.parent is not None
    assert page.front.endswith("/runs?workflowType=machine_learning&viewStateShareKey=front")
    killed = dump(folder)
    assert killed["t001"]["status"] == killed["parent"]["status"] == "KILLED"
    assert killed["dense-96"]["status"] == "FINISHED"
    # Looked at again, nothing changes; resumed, the same runs go on.
    catch_up(folder, "digits", store, "http://127.0.0.1:5000")
    assert dump(folder) == killed
    write(folder, ledgers.events())
    with MlflowTracker(search, store):
        pass
    resumed = dump(folder)
    assert resumed["t001"]["status"] == resumed["parent"]["status"] == "FINISHED"
    assert [s for s, _, _ in resumed["t001"]["metrics"]["loss"]] == [1, 2, 3]


def test_a_search_begun_anew_under_the_same_name_is_another(folder: Path) -> None:
    send(write(folder, ledgers.events()), folder)
    later = [{**row, "time": row["time"] + 5000} for row in ledgers.events()]
    mirror = send(write(folder, later), folder)
    assert mirror.num_runs == 10
    client = MlflowClient(tracking_uri=tracking_store(folder).uri)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 20


def test_training_goes_on_while_mlflow_is_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    rows = ledgers.events(complete=False)
    search = write(tmp_path, rows[:1])
    nobody = TrackingStore("http://127.0.0.1:9")  # the discard port: nothing listens
    tracker = MlflowTracker(search, nobody, retry_every=0.05)
    tracker.start()
    slowest = 0.0
    with search.ledger.open("a") as file:
        for row in rows[1:]:
            file.write(json.dumps(row) + "\n")
            file.flush()
            start = time.perf_counter()
            tracker.notify()
            slowest = max(slowest, time.perf_counter() - start)
    assert not tracker.close("interrupted")
    assert slowest < 0.005
    assert "the search goes on, its logging to MLflow waits" in caplog.text
    assert "tokenpool track rebuild digits" in caplog.text
    with pytest.raises(UserError, match=r"MLflow at http://127\.0\.0\.1:9 does not answer"):
        catch_up(tmp_path, "digits", nobody, nobody.uri)


def test_the_store_is_the_shared_server_where_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    local = tracking_store(tmp_path)
    assert local.is_local
    assert local.uri == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    assert tracking_store(tmp_path) == TrackingStore("https://mlflow.example.org")


def test_a_password_in_the_address_is_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:s3cret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = tracking_store(tmp_path)
    assert not store.is_local
    assert store.shown == "http://127.0.0.1:9"
    write(tmp_path, ledgers.events())
    with pytest.raises(UserError) as caught:
        catch_up(tmp_path, "digits", store, store.shown)
    assert "s3cret" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ann:s3cret@db.example.org/mlflow")
    database = tracking_store(tmp_path)
    assert database.is_local  # a database: `tokenpool ui` starts a server over it
    assert database.shown == "postgresql://db.example.org/mlflow"
