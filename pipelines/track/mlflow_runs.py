"""One search's runs in an MLflow store: found again by their tags, made, told, ended."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cluster.proxies import go_direct_if_here
from pipelines.track.front_view import VIEW_TAG, front_view
from pipelines.track.projection import PARENT, RunChange
from pipelines.track.store import TrackingStore

if TYPE_CHECKING:
    from mlflow import MlflowClient

SEARCH_TAG = "tokenpool.search"
POINT_TAG = "tokenpool.point"

# A down server is asked again soon; these are MLflow's own settings, and the user's go first.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
# The first opens the experiment with its runs, not with traces of chat models.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development", VIEW_TAG: front_view()}
_METRICS_PER_CALL = 800  # MLflow takes 1,000 items a call, params and tags included


class SearchRuns:
    """The parent run of a search and its children, as they are in MLflow.

    Args:
        store: Where they are.
        name: The search, and its experiment.
        search_id: One search in its lifetime: another one under the same name later is another.

    Raises:
        Exception: Whatever MLflow raises, here and in every method.
    """

    def __init__(self, store: TrackingStore, name: str, search_id: str) -> None:
        self.name, self._search_id = name, search_id
        self.ids: dict[str, str] = {}
        self.ended: set[str] = set()
        self.client = _open(store)
        self.experiment_id = self._experiment(store)
        for point_id, run_id, ended in self._existing():
            self.ids[point_id] = run_id
            if ended:
                self.ended.add(point_id)

    def tell(self, point_id: str, change: RunChange) -> None:
        """Logs what is new about one run, which is made if there is none."""
        from mlflow.entities import Metric, Param, RunTag

        run_id = self.ids.get(point_id) or self._create(point_id, change)
        metrics = [Metric(m.key, m.value, m.time_ms, m.step) for m in change.metrics]
        params = [Param(key, value) for key, value in change.params.items()]
        tags = [RunTag(key, value) for key, value in change.tags.items()]
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
        for run_id in self.ids.values():
            self.client.delete_run(run_id)

    def _experiment(self, store: TrackingStore) -> str:
        experiment = self.client.get_experiment_by_name(self.name)
        if experiment is None:
            root = store.artifact_root
            location = (root / self.name).as_uri() if root else None
            made: str = self.client.create_experiment(
                self.name, artifact_location=location, tags=_EXPERIMENT_TAGS
            )
            return made
        if experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
        if experiment.tags.get(VIEW_TAG) != front_view():
            self.client.set_experiment_tag(experiment.experiment_id, VIEW_TAG, front_view())
        return str(experiment.experiment_id)

    def _existing(self) -> Iterator[tuple[str, str, bool]]:
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id],
                f"tags.`{SEARCH_TAG}` = '{self._search_id}'",
                max_results=1000,
                page_token=token,
            )
            for run in page:
                ended = run.info.status not in ("RUNNING", "SCHEDULED")
                yield run.data.tags.get(POINT_TAG, PARENT), run.info.run_id, ended
            token = page.token
            if not token:
                return

    def _create(self, point_id: str, change: RunChange) -> str:
        tags = {SEARCH_TAG: self._search_id}
        if point_id != PARENT:
            tags |= {"mlflow.parentRunId": self.ids[PARENT], POINT_TAG: point_id}
        run = self.client.create_run(
            self.experiment_id,
            start_time=change.start_ms,
            tags=tags,
            run_name=point_id or self.name,
        )
        self.ids[point_id] = run.info.run_id
        return str(run.info.run_id)


def _open(store: TrackingStore) -> MlflowClient:
    for key, value in _PATIENCE.items():
        os.environ.setdefault(key, value)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    go_direct_if_here(store.uri)
    from mlflow import MlflowClient  # here, as it takes seconds

    # The first use of a database tells of each of its migrations.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store").setLevel(logging.WARNING)
    if store.artifact_root is not None:
        store.artifact_root.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=store.uri)
