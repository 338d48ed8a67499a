"""Where MLflow keeps the runs of a storage folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrackingStore:
    """An MLflow tracking store.

    Attributes:
        uri: Tracking URI.
        artifact_root: Folder of the artifacts; None where a server decides.
    """

    uri: str
    artifact_root: Path | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a database file on this machine and not a server."""
        return self.artifact_root is not None


def tracking_store(storage: Path) -> TrackingStore:
    """The shared server that `MLFLOW_TRACKING_URI` names, else SQLite under `storage`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri:
        return TrackingStore(uri)
    root = storage.resolve()
    return TrackingStore(f"sqlite:///{root / 'mlflow.db'}", root / "mlartifacts")
