"""A finished small search, as state and on disk."""

import logging
import shutil
from pathlib import Path

import ledgers
import pytest

from pipelines.search.state import SearchState, fold


@pytest.fixture
def state() -> SearchState:
    return fold("digits", ledgers.events())


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    ledgers.write_ledger(tmp_path, "digits", ledgers.events())
    return tmp_path


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables: making them takes MLflow five seconds."""
    from mlflow import MlflowClient  # here: most tests do without it

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    logging.getLogger("alembic").setLevel(logging.WARNING)
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def folder(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path
