"""What MLflow shows of a search that went straight: made once, compared with many times."""

import shutil
from pathlib import Path
from typing import Any

import ledgers
import pytest


@pytest.fixture(scope="session")
def expected(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of `ledgers.events()`, where nothing fails and nobody deletes anything."""
    from mirrored import dump, send, write  # here: most tests do without MLflow

    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        shutil.copy(empty_database, folder / "mlflow.db")
        send(write(folder, ledgers.events()), folder)
        return dump(folder)
