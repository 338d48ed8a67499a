"""Keeps MLflow in step with a search's ledger.

The ledger is the spool: whatever MLflow has not taken yet is still in it. A cursor file beside it
says how far MLflow has got, and what is sent twice after a crash changes nothing (see
`projection`). So a server that is down delays the runs and never the training.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout

from pipelines.errors import UserError
from pipelines.search.ledger import LEDGER_NAME, Event
from pipelines.track import files
from pipelines.track.front import build_front, history
from pipelines.track.outside import load_outside
from pipelines.track.page import split_sizes, summary, write_page
from pipelines.track.projection import PARENT, Projection, RunChange
from pipelines.track.store import TrackingStore
from pipelines.track.table import compact_schedule, percent

if TYPE_CHECKING:
    from mlflow import MlflowClient

DRIVER_LOCK = "driver.lock"
CURSOR_NAME = "mlflow_cursor.json"
SEARCH_TAG = "tokenpool.search"
POINT_TAG = "tokenpool.point"

# A down server is asked again soon; these are MLflow's own settings, and the user's go first.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
# Opens the experiment with its runs, not with traces of chat models.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
_METRICS_PER_CALL = 800  # MLflow takes 1,000 items a call, params and tags included


class LedgerMirror:
    """One ledger, one MLflow store, and how far the second has got with the first.

    Args:
        directory: The search's folder.
        store: Where to log.
    """

    def __init__(self, directory: Path, store: TrackingStore) -> None:
        self.directory, self.store, self.name = directory, store, directory.name
        self.projection = Projection(directory.name)
        self._ledger = directory / LEDGER_NAME
        self._cursor = directory / CURSOR_NAME
        self._read_to = 0
        self._sent_to = self._load_cursor()
        self._waiting: dict[str, RunChange] = {}
        self._client: MlflowClient | None = None
        self._runs: dict[str, str] = {}
        self._ended: set[str] = set()
        self._experiment_id = ""

    @property
    def caught_up(self) -> bool:
        """Whether everything read has been sent."""
        return not self._waiting and self._sent_to == self._read_to

    def read(self, *, resumed: bool = False) -> None:
        """Takes in what the ledger has gained.

        Args:
            resumed: A driver runs (again), so unfinished runs are to be shown as running.
        """
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
        self._connect()
        self.projection.interrupt(status, _now_ms(), already_ended=self._ended - set(self._waiting))
        self._merge()

    def send(self, *, with_artifacts: bool = True) -> None:
        """Brings MLflow up to date.

        Raises:
            Exception: Whatever MLflow raises; nothing is lost, call again.
        """
        if not self.projection.state.exists:
            return
        reached = self._read_to
        for point_id in list(self._waiting):
            self._send_run(point_id, self._waiting[point_id])
            del self._waiting[point_id]
        if reached != self._sent_to:
            self._save_cursor(reached)
        if with_artifacts and self.projection.front_moved:
            self._send_front()
            self.projection.front_moved = False

    @property
    def client(self) -> MlflowClient:
        """The client of the store, connected."""
        return self._connect()

    def run_id(self, point_id: str) -> str:
        """MLflow's id of a point's run."""
        self._connect()
        return self._runs[point_id]

    @property
    def num_runs(self) -> int:
        """Runs of this search in MLflow, the parent included."""
        return len(self._runs)

    def delete_runs(self) -> int:
        """Deletes the search's runs from MLflow and forgets how far it had got.

        A new mirror then logs all of it anew.

        Returns:
            How many there were.
        """
        client = self._connect()
        for run_id in self._runs.values():
            client.delete_run(run_id)
        self._cursor.unlink(missing_ok=True)
        return len(self._runs)

    def parent_url(self, base: str, tab: str = "") -> str | None:
        """Address of the parent's page on an MLflow server at `base`; None if there is none.

        Args:
            base: Address of the server.
            tab: A page below it, e.g. `artifacts/front.html`.
        """
        if not self.projection.state.exists:
            return None
        self._connect()
        run_id = self._runs.get(PARENT)
        if run_id is None:
            return None
        page = f"{base}/#/experiments/{self._experiment_id}/runs/{run_id}"
        # Without it MLflow shows its menu for chat models.
        return f"{page}/{tab}".rstrip("/") + "?workflowType=machine_learning"

    # ---------------------------------------------------------------- private

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

    def _connect(self) -> MlflowClient:
        """Opens the store and finds the runs that are there."""
        if self._client is not None:
            return self._client
        for key, value in _PATIENCE.items():
            os.environ.setdefault(key, value)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient  # here, as it takes seconds

        # The first use of a database tells of each of its migrations.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store").setLevel(logging.WARNING)
        if self.store.artifact_root is not None:
            self.store.artifact_root.mkdir(parents=True, exist_ok=True)

        client = MlflowClient(tracking_uri=self.store.uri)
        experiment = client.get_experiment_by_name(self.name)
        if experiment is None:
            root = self.store.artifact_root
            location = (root / self.name).as_uri() if root else None
            self._experiment_id = client.create_experiment(
                self.name, artifact_location=location, tags=_EXPERIMENT_TAGS
            )
        else:
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
            self._experiment_id = experiment.experiment_id
        for point_id, run_id, ended in self._existing_runs(client):
            self._runs[point_id] = run_id
            if ended:
                self._ended.add(point_id)
        self._client = client
        return client

    def _existing_runs(self, client: MlflowClient) -> Iterator[tuple[str, str, bool]]:
        token: str | None = None
        while True:
            page = client.search_runs(
                [self._experiment_id],
                f"tags.`{SEARCH_TAG}` = '{self._search_id()}'",
                max_results=1000,
                page_token=token,
            )
            for run in page:
                ended = run.info.status not in ("RUNNING", "SCHEDULED")
                yield run.data.tags.get(POINT_TAG, PARENT), run.info.run_id, ended
            token = page.token
            if not token:
                return

    def _search_id(self) -> str:
        """One search in its lifetime: another one under the same name later is another."""
        return f"{self.name}@{self.projection.state.created:.3f}"

    def _send_run(self, point_id: str, change: RunChange) -> None:
        from mlflow.entities import Metric, Param, RunTag

        client = self._connect()
        run_id = self._runs.get(point_id) or self._create_run(point_id, change)
        metrics = [Metric(m.key, m.value, m.time_ms, m.step) for m in change.metrics]
        params = [Param(key, value) for key, value in change.params.items()]
        tags = [RunTag(key, value) for key, value in change.tags.items()]
        for start in range(0, max(len(metrics), 1), _METRICS_PER_CALL):
            part = metrics[start : start + _METRICS_PER_CALL]
            client.log_batch(run_id, part, params, tags)
            params, tags = [], []
        if change.status == "RUNNING":
            client.update_run(run_id, status="RUNNING")
            self._ended.discard(point_id)
        elif change.status is not None:
            client.set_terminated(run_id, change.status, change.end_ms)
            self._ended.add(point_id)

    def _create_run(self, point_id: str, change: RunChange) -> str:
        client = self._connect()
        tags = {SEARCH_TAG: self._search_id()}
        if point_id != PARENT:
            tags |= {"mlflow.parentRunId": self._runs[PARENT], POINT_TAG: point_id}
        run = client.create_run(
            self._experiment_id,
            start_time=change.start_ms,
            tags=tags,
            run_name=point_id or self.name,
        )
        self._runs[point_id] = run.info.run_id
        return run.info.run_id

    def _send_front(self) -> None:
        """The front as CSV, Parquet, PNG and page, the config, and the description."""
        from pipelines.track.plot import write_png  # here, as matplotlib takes a second

        client = self._connect()
        state = self.projection.state
        front = build_front(state)
        run_id = self._runs[PARENT]
        steps = history(self.name, (event for event, _ in _events_from(self._ledger, 0)))
        with tempfile.TemporaryDirectory(prefix="tokenpool-front-") as folder:
            out = Path(folder)
            files.write_text(out / "front.csv", files.to_csv(front.points))
            files.write_parquet(front.points, out / "front.parquet")
            files.write_text(out / "config.yaml", yaml.safe_dump(state.config, sort_keys=False))
            write_png(front, out / "front.png")
            others = load_outside(self.directory)
            footer = f"config {state.config_hash}"
            samples = split_sizes(state)
            page = out / "front.html"
            write_page(front, page, steps, others, samples=samples, footer=footer)
            client.log_artifacts(run_id, folder)
        rows = [
            f"| {point.point_id} | {point.width} | {compact_schedule(point.schedule)} | "
            f"{point.gmacs:.4g} | {100 * point.dense_share:.0f} | "
            f"{percent(point.top1_minival)} | {percent(point.top1_val)} |"
            for point in front.on_front
        ]
        note = "\n".join(
            [
                f"Search `{self.name}`: {summary(front)}",
                "",
                "| model | width | patch tokens | GMACs | % of dense | minival | val |",
                "|---|---|---|---|---|---|---|",
                *rows,
                "",
                "The interactive front is the artifact `front.html`. "
                f"`tokenpool pick {self.name} --knee` chooses, `tokenpool export` takes away.",
            ]
        )
        client.set_tag(run_id, "mlflow.note.content", note)

    def _load_cursor(self) -> int:
        try:
            cursor: dict[str, Any] = json.loads(self._cursor.read_text())
        except (OSError, ValueError):
            return 0
        # Another store, or another search under this name since: from the beginning.
        same = cursor.get("store") == self.store.uri and cursor.get("born") == self._born()
        return int(cursor["offset"]) if same else 0

    def _save_cursor(self, offset: int) -> None:
        cursor = {"store": self.store.uri, "born": self._born(), "offset": offset}
        files.write_text(self._cursor, json.dumps(cursor))
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
            yield json.loads(line), offset


def _now_ms() -> int:
    return round(time.time() * 1000)


def one_line(error: Exception) -> str:
    """An exception's type and first line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


def catch_up(storage: Path, name: str, store: TrackingStore, base: str) -> str | None:
    """Logs what MLflow has missed of a search, and ends runs that no driver stands behind.

    A driver that was killed could not end its runs: they would be shown as running for ever.

    Args:
        storage: Folder that keeps the searches.
        name: The search.
        store: Where to log.
        base: Address of the MLflow server.

    Returns:
        Address of the parent's page.

    Raises:
        UserError: MLflow is not reachable.
    """
    directory = storage / "searches" / name
    mirror = LedgerMirror(directory, store)
    try:
        if not driver_runs(directory):
            mirror.read()
            mirror.interrupt("KILLED")
            mirror.send()
        else:
            mirror.read()
        return mirror.parent_url(base)
    except Exception as error:  # whatever MLflow or its database throws
        raise UserError(
            f"MLflow at {store.uri} does not answer: {one_line(error)}", exit_code=1
        ) from None


def driver_runs(directory: Path) -> bool:
    """Whether a driver holds the search's ledger."""
    lock = FileLock(directory / DRIVER_LOCK)
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def rebuild(storage: Path, name: str, store: TrackingStore) -> int:
    """Deletes a search's runs from MLflow and logs them anew from the ledger.

    Returns:
        How many runs were logged.

    Raises:
        UserError: A driver is at work on the search.
    """
    directory = storage / "searches" / name
    if driver_runs(directory):
        raise UserError(f"search {name} is running and logs by itself: stop it first", exit_code=1)
    stale = LedgerMirror(directory, store)
    stale.read()
    stale.delete_runs()
    fresh = LedgerMirror(directory, store)
    fresh.read()
    fresh.interrupt("KILLED")
    fresh.send()
    return fresh.num_runs
