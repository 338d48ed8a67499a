"""One search's runs in an MLflow store: found again by their tags, made, told, ended."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.proxies import go_direct_if_here
from pipelines.errors import UserError
from pipelines.storage.hashes import text_hash
from pipelines.streams import as_utf8
from pipelines.tracking.front_view import VIEW_TAG, front_view
from pipelines.tracking.projection import PARENT, RunChange
from pipelines.tracking.tracking_store import TrackingStore

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SEARCH_TAG = "tokenpool.search"
POINT_TAG = "tokenpool.point"
_PARENT_TAG = "mlflow.parentRunId"

# A down server is asked again soon; these are MLflow's own settings, and the user's go first.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
# The first opens the experiment with its runs, not with traces of chat models.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development", VIEW_TAG: front_view()}
_METRICS_PER_CALL = 800  # MLflow takes 1,000 items a call, params and tags included


class SearchRuns:
    """The parent run of a search and its children, as they are in MLflow, which may raise anything.

    The search's name is its experiment's; `search_id` tells it from a later one of the same name.
    """

    def __init__(self, store: TrackingStore, name: str, search_id: str) -> None:
        self.name, self._search_id = name, search_id
        self.ids: dict[str, str] = {}
        self.ended: set[str] = set()
        self.extra: dict[str, list[str]] = {}
        """Further runs of a point, as there are where one was deleted, logged anew and restored."""
        self._parents: dict[str, str] = {}
        self.client = _open(store)
        self.experiment_id = self._experiment(store)
        self.look()

    def look(self) -> None:
        """Finds the runs that are there now."""
        self.ids, self.ended, self.extra, self._parents = {}, set(), {}, {}
        for run in self._existing():
            point_id, run_id = run.data.tags.get(POINT_TAG, PARENT), str(run.info.run_id)
            if point_id in self.ids:
                self.extra.setdefault(point_id, []).append(run_id)
                continue
            self.ids[point_id] = run_id
            self._parents[point_id] = run.data.tags.get(_PARENT_TAG, "")
            if run.info.status not in ("RUNNING", "SCHEDULED"):
                self.ended.add(point_id)
        if PARENT in self.ids:
            self._adopt()

    def tell(self, point_id: str, change: RunChange) -> None:
        """Logs what is new about one run, which is made if there is none."""
        from mlflow.entities import Metric, Param, RunTag

        run_id = self.ids.get(point_id) or self._create(point_id, change)
        metrics = [Metric(m.key, m.value, m.time_ms, m.step) for m in change.metrics]
        params = [Param(key, as_utf8(value)) for key, value in change.params.items()]
        tags = [RunTag(key, as_utf8(value)) for key, value in change.tags.items()]
        for start in range(0, max(len(metrics), 1), _METRICS_PER_CALL):
            part = metrics[start : start + _METRICS_PER_CALL]
            self.client.log_batch(run_id, part, params, tags)
            params, tags = [], []
        if change.status == "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
            self.ended.discard(point_id)
        elif change.status is not None:
            self.client.set_terminated(run_id, change.status, change.end_ms)
            self.ended.add(point_id)

    def delete(self) -> None:
        """Deletes all of them."""
        self.delete_extra()
        for run_id in self.ids.values():
            self.client.delete_run(run_id)

    def delete_extra(self) -> None:
        """Leaves one run of each point."""
        for point_id in list(self.extra):
            for run_id in self.extra[point_id]:
                self.client.delete_run(run_id)
            del self.extra[point_id]

    def _adopt(self) -> None:
        """Puts children of a parent that is gone below the one that there is."""
        parent = self.ids[PARENT]
        for point_id, known in self._parents.items():
            if point_id != PARENT and known != parent:
                self.client.set_tag(self.ids[point_id], _PARENT_TAG, parent)
                self._parents[point_id] = parent

    def _experiment(self, store: TrackingStore) -> str:
        # Renamed it is still this search's, and one of its old name may be another's.
        mark = f"{SEARCH_TAG}.{text_hash(self._search_id, 16)}"
        marked = self.client.search_experiments(filter_string=f"tags.`{mark}` = 'true'")
        experiment = marked[0] if marked else self.client.get_experiment_by_name(self.name)
        if experiment is None:
            root = store.artifact_root
            location = (root / self.name).as_uri() if root else None
            made: str = self.client.create_experiment(
                self.name, artifact_location=location, tags=_EXPERIMENT_TAGS | {mark: "true"}
            )
            return made
        if experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
        for key, value in ((VIEW_TAG, front_view()), (mark, "true")):
            if experiment.tags.get(key) != value:
                self.client.set_experiment_tag(experiment.experiment_id, key, value)
        return str(experiment.experiment_id)

    def _existing(self) -> Iterator[Run]:
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id],
                f"tags.`{SEARCH_TAG}` = '{self._search_id}'",
                max_results=1000,
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _create(self, point_id: str, change: RunChange) -> str:
        tags = {SEARCH_TAG: self._search_id}
        if point_id != PARENT:
            tags |= {_PARENT_TAG: self.ids[PARENT], POINT_TAG: point_id}
        run = self.client.create_run(
            self.experiment_id,
            start_time=change.start_ms,
            tags=tags,
            run_name=point_id or self.name,
        )
        self.ids[point_id] = str(run.info.run_id)
        self._parents[point_id] = tags.get(_PARENT_TAG, "")
        if point_id == PARENT:
            self._adopt()
        return self.ids[point_id]


def _open(store: TrackingStore) -> MlflowClient:
    for key, value in _PATIENCE.items():
        os.environ.setdefault(key, value)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    go_direct_if_here(store.uri)
    from mlflow import MlflowClient  # here, as it takes seconds

    # The first use of a database tells of each of its migrations.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Its traceback of each failed write as well: whoever calls says why in one line.
    logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)
    _check_database(store)
    if store.artifact_root is not None:
        store.artifact_root.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=store.uri)


def _check_database(store: TrackingStore) -> None:
    """Raises what a database answers with if it is none: MLflow tries again for two minutes."""
    import sqlalchemy

    try:
        url = sqlalchemy.make_url(store.uri)
    except sqlalchemy.exc.ArgumentError:
        return  # a folder, or what MLflow itself refuses
    kind, file = url.get_backend_name(), Path(url.database or "")
    if kind not in ("sqlite", "postgresql", "mysql", "mssql"):
        return
    if kind == "sqlite" and not str(file).startswith("file:") and not file.parent.exists():
        return  # MLflow makes both
    try:
        engine = sqlalchemy.create_engine(store.uri, poolclass=sqlalchemy.NullPool)
    except ModuleNotFoundError as error:
        raise UserError(
            f"the database {store.shown} needs a package that is not installed here: "
            f"`pip install {error.name}`",
            exit_code=1,
        ) from None
    sqlalchemy.inspect(engine).get_table_names()
