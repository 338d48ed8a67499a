"""A made-up search sent to MLflow, and all that MLflow then shows of it."""

from pathlib import Path
from typing import Any

import ledgers
from mlflow import MlflowClient

from pipelines.storage.search_files import Search
from pipelines.tracking.mirror import LedgerMirror
from pipelines.tracking.tracking_store import tracking_store


def write(storage: Path, rows: list[dict[str, Any]]) -> Search:
    return ledgers.write_ledger(storage, "digits", rows)


def send(search: Search, storage: Path, *, artifacts: bool = False) -> LedgerMirror:
    mirror = LedgerMirror(search, tracking_store(storage))
    mirror.read()
    mirror.send(with_artifacts=artifacts)
    return mirror


def dump(storage: Path) -> dict[str, Any]:
    """All that MLflow shows of a search, without the ids it made up."""
    client = MlflowClient(tracking_uri=tracking_store(storage).uri)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    runs = {}
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        name = run.data.tags.get("tokenpool.point", "parent")
        assert name not in runs, f"{name} is there twice"
        history = {
            key: [
                (m.step, m.value, m.timestamp)
                for m in client.get_metric_history(run.info.run_id, key)
            ]
            for key in run.data.metrics
        }
        tags = {k: v for k, v in run.data.tags.items() if k != "mlflow.parentRunId"}
        runs[name] = {
            "params": run.data.params,
            "tags": tags,
            "status": run.info.status,
            "times": (run.info.start_time, run.info.end_time),
            "metrics": history,
        }
    return runs
