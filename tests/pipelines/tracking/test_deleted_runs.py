"""Runs that somebody deletes in MLflow come back whole: MLflow shows what the ledger holds.

The field's script deletes one run of a base by hand between two sessions. Its neighbours here are
everything else the UI and `mlflow gc` can take away: a trial, the parent, all, the experiment, at
rest and under a running driver, for good or restored; and what it can rename.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ledgers
import pytest
from mirrored import dump, send, write
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from thinning import fast

from pipelines.search.ledger import Ledger
from pipelines.storage.search_files import Search
from pipelines.tracking.mirror import LedgerMirror
from pipelines.tracking.mlflow_tracker import MlflowTracker
from pipelines.tracking.tracking_store import tracking_store
from pipelines.tracking.upkeep import catch_up, rebuild

ROWS = ledgers.events()
# In the middle of t002, which has one of its three epochs.
HALF = 1 + next(
    i for i, row in enumerate(ROWS)
    if row["event"] == "trial_report" and row["trial_id"] == "t002"
)  # fmt: skip


@pytest.fixture
def client(folder: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=tracking_store(folder).uri)


def runs(client: MlflowClient, name: str = "digits") -> dict[str, Any]:
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    return {run.data.tags.get("tokenpool.point", "parent"): run for run in found}


def gone_for_good(client: MlflowClient, run_id: str) -> None:
    """What `mlflow gc` does with a deleted run."""
    client.delete_run(run_id)
    store = client._tracking_client.store
    assert isinstance(store, SqlAlchemyStore)
    store._hard_delete_run(run_id)


def delete(*names: str, for_good: bool = False) -> Callable[[MlflowClient], None]:
    def run(client: MlflowClient) -> None:
        there = runs(client)
        for name in names or there:
            run_id = there[name].info.run_id
            gone_for_good(client, run_id) if for_good else client.delete_run(run_id)

    return run


def delete_experiment(client: MlflowClient) -> None:
    experiment = client.get_experiment_by_name("digits")
    client.delete_experiment(experiment.experiment_id)


def purge_experiment(client: MlflowClient) -> None:
    delete(for_good=True)(client)
    experiment = client.get_experiment_by_name("digits")
    client.delete_experiment(experiment.experiment_id)
    client._tracking_client.store._hard_delete_experiment(experiment.experiment_id)


HANDS = {
    "a finished base": delete("dense-96"),
    "a finished trial": delete("t001"),
    "the one that runs": delete("t002"),
    "the parent alone": delete("parent"),
    "the parent and one child": delete("parent", "t001"),
    "all": delete(),
    "a trial, for good": delete("t001", for_good=True),
    "the one that runs, for good": delete("t002", for_good=True),
    "the parent, for good": delete("parent", for_good=True),
    "the experiment": delete_experiment,
    "the experiment, for good": purge_experiment,
}


@pytest.mark.parametrize("hand", HANDS.values(), ids=HANDS.keys())
def test_between_two_sessions(
    folder: Path, client: MlflowClient, expected: dict[str, Any], hand: Callable[..., None]
) -> None:
    send(write(folder, ROWS[:HALF]), folder)
    hand(client)
    send(write(folder, ROWS), folder)
    assert dump(folder) == expected
    below_the_parent(client)


# Those that differ most to a driver at work: what it writes to, what it does not, what both lie in.
_AT_WORK = {
    *("the one that runs", "the one that runs, for good", "a finished trial"),
    *("all", "the parent alone", "the experiment"),
}


@pytest.mark.parametrize("name", fast(6, sorted(HANDS, key=lambda name: name not in _AT_WORK)))
def test_under_a_running_driver(
    folder: Path, client: MlflowClient, expected: dict[str, Any], name: str
) -> None:
    mirror = send(write(folder, ROWS[:HALF]), folder)
    HANDS[name](client)
    write(folder, ROWS)
    mirror.read()
    mirror.send()  # with the front's files, as a driver sends them every minute and at its end
    assert dump_without_front(folder) == without_front(expected)
    below_the_parent(client)
    assert "front.html" in {f.path for f in client.list_artifacts(mirror.run_id(""))}


@pytest.mark.parametrize(
    "hand", [HANDS[name] for name in ("a trial, for good", "the parent alone", "the experiment")]
)
def test_after_the_end_of_it_all(
    folder: Path, client: MlflowClient, expected: dict[str, Any], hand: Callable[..., None]
) -> None:
    """`ui`, `register` and the command typed again each look at what is there."""
    send(write(folder, ROWS), folder)
    hand(client)
    catch_up(folder, "digits", tracking_store(folder), "http://127.0.0.1:5000")
    assert dump_without_front(folder) == without_front(expected)
    below_the_parent(client)


def test_a_killed_driver_leaves_nothing_running(folder: Path, client: MlflowClient) -> None:
    send(write(folder, ROWS[:HALF]), folder)
    delete("t002")(client)
    catch_up(folder, "digits", tracking_store(folder), "http://127.0.0.1:5000")
    there = runs(client)
    assert there["t002"].info.status == there["parent"].info.status == "KILLED"
    assert len(client.get_metric_history(there["t002"].info.run_id, "top1_minival")) == 1
    assert there["t002"].data.params["k01"] == "32"


@pytest.mark.parametrize("name", ["t002", "t001", "parent"])
def test_restored_after_it_came_back_there_is_one_of_it(
    folder: Path, client: MlflowClient, expected: dict[str, Any], name: str
) -> None:
    send(write(folder, ROWS[:HALF]), folder)
    old = runs(client)[name].info.run_id
    client.delete_run(old)
    mirror = send(write(folder, ROWS[: HALF + 3]), folder)
    client.restore_run(old)
    write(folder, ROWS)
    mirror.read()
    mirror.send()
    assert dump_without_front(folder) == without_front(expected)
    below_the_parent(client)


def test_restored_before_anybody_looked_it_is_as_it_was(
    folder: Path, client: MlflowClient, expected: dict[str, Any]
) -> None:
    send(write(folder, ROWS[:HALF]), folder)
    old = runs(client)["t002"].info.run_id
    client.delete_run(old)
    client.restore_run(old)
    send(write(folder, ROWS), folder)
    assert dump(folder) == expected
    assert runs(client)["t002"].info.run_id == old


def test_renamed_it_is_followed(folder: Path, client: MlflowClient) -> None:
    """Renaming takes nothing away, but by their names neither would be found again."""
    send(write(folder, ROWS[:HALF]), folder)
    there = runs(client)
    client.update_run(there["t001"].info.run_id, name="the good one")
    client.rename_experiment(there["t001"].info.experiment_id, "of last week")
    client.create_experiment("digits")  # and somebody else takes the name
    send(write(folder, ROWS), folder)
    again = runs(client, "of last week")
    assert {n: r.info.run_id for n, r in there.items()}.items() <= {
        n: r.info.run_id for n, r in again.items()
    }.items()
    assert again["t001"].info.run_name == "the good one"
    assert again.keys() == {"parent", "dense-96", "dense-64", *(t[0] for t in ledgers.TRIALS)}
    assert not runs(client)


def test_another_search_of_the_name_keeps_to_its_own(folder: Path, client: MlflowClient) -> None:
    send(write(folder, ROWS), folder)
    experiment = client.get_experiment_by_name("digits")
    client.rename_experiment(experiment.experiment_id, "of last week")
    later = [row | {"time": row["time"] + 1e6} for row in ROWS]
    send(write(folder, later), folder)
    assert runs(client).keys() == runs(client, "of last week").keys()
    assert runs(client)["t001"].info.run_id != runs(client, "of last week")["t001"].info.run_id


def test_rebuilt_with_one_deleted_and_restored(
    folder: Path, client: MlflowClient, expected: dict[str, Any]
) -> None:
    search = write(folder, ROWS)
    send(search, folder)
    old = runs(client)["t001"].info.run_id
    client.delete_run(old)
    send(search, folder)
    client.restore_run(old)
    rebuild(Search(folder, "digits"), tracking_store(folder))
    assert dump_without_front(folder) == without_front(expected)


def test_the_database_is_made_anew(
    folder: Path, empty_database: Path, expected: dict[str, Any]
) -> None:
    """A neighbour of deleting all: the file is moved away, and the cursor says all was sent."""
    send(write(folder, ROWS[:HALF]), folder)
    shutil.copy(empty_database, folder / "mlflow.db")
    send(write(folder, ROWS), folder)
    assert dump(folder) == expected


def test_the_tracker_goes_on_without_a_warning(
    folder: Path, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    search = Search(folder, "digits")
    with (
        Ledger(search) as ledger,
        MlflowTracker(search, tracking_store(folder), retry_every=0.2) as tracker,
    ):
        for number, row in enumerate(ROWS):
            ledger.append(
                row["event"], **{k: v for k, v in row.items() if k not in ("event", "time")}
            )
            if number == HALF:
                tracker.notify()
                wait_for(lambda: "t002" in names(client))
                delete("t002", "parent")(client)
    there = runs(client)
    assert there["t002"].info.status == there["parent"].info.status == "FINISHED"
    assert len(client.get_metric_history(there["t002"].info.run_id, "top1_minival")) == 3
    assert "logging" not in caplog.text


def test_each_is_logged_anew_once(folder: Path, client: MlflowClient) -> None:
    search = write(folder, ROWS)
    send(search, folder)
    delete("t001")(client)
    first = runs_of(send(search, folder), client)
    assert runs_of(send(search, folder), client) == first
    experiment = client.get_experiment_by_name("digits")
    everything = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL)
    assert len(everything) == len(first) + 1  # the deleted one


def runs_of(mirror: LedgerMirror, client: MlflowClient) -> dict[str, str]:
    assert mirror.caught_up
    return {name: run.info.run_id for name, run in runs(client).items()}


def names(client: MlflowClient) -> set[str]:
    return set(runs(client)) if client.get_experiment_by_name("digits") else set()


def wait_for(reached: Callable[[], bool]) -> None:
    import time

    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def below_the_parent(client: MlflowClient) -> None:
    there = runs(client)
    parent = there.pop("parent").info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in there.values()} == {parent}


def without_front(shown: dict[str, Any]) -> dict[str, Any]:
    """Without the description that comes with the front's files."""
    notes = ("mlflow.note.content",)
    return {
        name: run | {"tags": {k: v for k, v in run["tags"].items() if k not in notes}}
        for name, run in shown.items()
    }


def dump_without_front(folder: Path) -> dict[str, Any]:
    return without_front(dump(folder))
