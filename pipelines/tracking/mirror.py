"""Keeps MLflow in step with a search's ledger.

The ledger is the spool: whatever MLflow has not taken yet is still in it. A cursor file beside it
says how far MLflow has got, and what is sent twice after a crash changes nothing (see
`projection`). So a server that is down delays the runs and never the training.

MLflow shows what the ledger holds. Runs that somebody deleted there, or that a new database lacks,
are logged anew from the ledger's beginning, whole and below the right parent; to be rid of a run
one deletes the search.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.search.ledger import Event, parse_event
from pipelines.storage.durable import write_text
from pipelines.storage.search_files import Search
from pipelines.tracking.front_artifacts import send_front
from pipelines.tracking.front_view import front_view_url
from pipelines.tracking.mlflow_runs import SearchRuns
from pipelines.tracking.projection import PARENT, Projection, RunChange
from pipelines.tracking.tracking_store import TrackingStore

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What MLflow says of a run or an experiment that somebody has deleted.
_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")


class LedgerMirror:
    """The ledger in a search's folder, one MLflow store, and how far that has got with it."""

    def __init__(self, search: Search, store: TrackingStore) -> None:
        self.search, self.store, self.name = search, store, search.name
        self.projection = Projection(search.name)
        self._ledger, self._cursor = search.ledger, search.mlflow_cursor
        self._read_to = 0
        self._sent_to = self._load_cursor()
        self._waiting: dict[str, RunChange] = {}
        self._runs: SearchRuns | None = None

    @property
    def caught_up(self) -> bool:
        """Whether everything read has been sent."""
        return not self._waiting and self._sent_to == self._read_to

    def read(self, *, resumed: bool = False) -> None:
        """Takes in what the ledger has gained; `resumed`: unfinished runs are running (again)."""
        for event, offset in _events_from(self._ledger, self._read_to):
            self.projection.apply(event)
            self._read_to = offset
            if offset <= self._sent_to:
                self.projection.take()  # MLflow has had these
        if resumed and self.projection.state.exists and not self.projection.state.complete:
            self.projection.resume(_now_ms())
        self._merge()

    def interrupt(self, status: str) -> None:
        """Ends what would be left as running with `status`, KILLED or FAILED."""
        if not self.projection.state.exists or self.projection.state.complete:
            return
        # Connected first: of runs that are gone there, all is waiting then.
        already_ended = self._connect().ended - set(self._waiting)
        self.projection.interrupt(status, _now_ms(), already_ended=already_ended)
        self._merge()

    def send(self, *, with_artifacts: bool = True) -> None:
        """Brings MLflow up to date; whatever it raises, nothing is lost: call again.

        With artifacts go the front's files, where it has moved, and runs deleted meanwhile.
        """
        if not self.projection.state.exists:
            return
        reached = self._read_to
        try:
            self._send_waiting()
        except Exception as error:
            code = getattr(error, "error_code", None)
            self._runs = None  # what was deleted there is found out by looking again
            if code not in _GONE:
                raise
            self._send_waiting()
        if with_artifacts:
            self._connect().look()
            self._add_missing()
            self._send_waiting()
        if reached != self._sent_to:
            self._save_cursor(reached)
        if with_artifacts and self.projection.front_moved:
            runs = self._connect()
            send_front(runs.client, runs.ids[PARENT], self.projection.state, self.search)
            self.projection.front_moved = False

    @property
    def client(self) -> MlflowClient:
        """The client of the store, connected."""
        return self._connect().client

    def run_id(self, point_id: str) -> str:
        """MLflow's id of a point's run."""
        return self._connect().ids[point_id]

    @property
    def num_runs(self) -> int:
        """Runs of this search in MLflow, the parent included."""
        return len(self._connect().ids)

    def delete_runs(self) -> set[str]:
        """Deletes the search's runs from MLflow and gives their ids; a new mirror logs all anew."""
        self._connect().delete()
        self._cursor.unlink(missing_ok=True)
        return set(self._connect().ids.values())

    def parent_url(self, base: str) -> str | None:
        """Address of the parent's page on an MLflow server at `base`; None if there is none."""
        if not self.projection.state.exists:
            return None
        runs = self._connect()
        run_id = runs.ids.get(PARENT)
        if run_id is None:
            return None
        # Without the last part MLflow shows its menu for chat models.
        page = f"{base}/#/experiments/{runs.experiment_id}/runs/{run_id}"
        return f"{page}?workflowType=machine_learning"

    def front_url(self, base: str) -> str:
        """Address of MLflow's runs table, opened as the front."""
        return front_view_url(base, self._connect().experiment_id)

    # ---------------------------------------------------------------- private

    def _send_waiting(self) -> None:
        runs = self._connect()
        for point_id in list(self._waiting):
            runs.tell(point_id, self._waiting[point_id])
            del self._waiting[point_id]
        runs.delete_extra()

    def _add_missing(self) -> None:
        """Has runs that were logged and are gone logged anew, from the ledger's first event on."""
        runs = self._connect()
        # Of several runs of one point nobody knows which has all.
        wanted = (self.projection.run_ids - runs.ids.keys()) | runs.extra.keys()
        if not wanted:
            return
        whole = Projection(self.name)
        for event, offset in _events_from(self._ledger, 0):
            if offset > self._read_to:
                break
            whole.apply(event)
        anew = {
            point_id: change
            for point_id, change in whole.take().items()  # the parent first
            if point_id in wanted
        }
        for point_id in anew.keys() & self._waiting.keys():
            later = self._waiting[point_id]
            if later.status is not None:
                anew[point_id].status, anew[point_id].end_ms = later.status, later.end_ms
        self._waiting = anew | {k: v for k, v in self._waiting.items() if k not in anew}
        self.projection.front_moved |= PARENT in anew

    def _merge(self) -> None:
        for point_id, change in self.projection.take().items():
            waiting = self._waiting.get(point_id)
            if waiting is None:
                self._waiting[point_id] = change
                continue
            waiting.params |= change.params
            waiting.tags |= change.tags
            waiting.metrics += change.metrics
            if change.status is not None:
                waiting.status, waiting.end_ms = change.status, change.end_ms

    def _connect(self) -> SearchRuns:
        """Opens the store and finds the runs that are there."""
        if self._runs is None:
            search_id = f"{self.name}@{self.projection.state.created:.3f}"
            self._runs = SearchRuns(self.store, self.name, search_id)
            self._add_missing()
        return self._runs

    def _load_cursor(self) -> int:
        try:
            cursor: dict[str, Any] = json.loads(self._cursor.read_text())
        except (OSError, ValueError):
            return 0
        # Another store, or another search under this name since: from the beginning.
        same = cursor.get("store") == self.store.shown and cursor.get("born") == self._born()
        return int(cursor["offset"]) if same else 0

    def _save_cursor(self, offset: int) -> None:
        cursor = {"store": self.store.shown, "born": self._born(), "offset": offset}
        write_text(self._cursor, json.dumps(cursor))
        self._sent_to = offset

    def _born(self) -> float | None:
        """When the ledger was begun."""
        first = next(_events_from(self._ledger, 0), None)
        return None if first is None else float(first[0]["time"])


def _events_from(path: Path, offset: int) -> Iterator[tuple[Event, int]]:
    """Complete events from a byte offset on, each with the offset after it."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield parse_event(line), offset


def _now_ms() -> int:
    return round(time.time() * 1000)
