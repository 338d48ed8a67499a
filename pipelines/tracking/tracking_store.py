"""Where MLflow keeps the runs of a storage folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.secrecy.guard import redactor

_SERVER = re.compile(r"https?://|databricks")


@dataclass(frozen=True)
class TrackingStore:
    """An MLflow tracking store; without a root of artifacts a server decides where these go."""

    uri: str
    artifact_root: Path | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a database and not a server."""
        return self.artifact_root is not None

    @property
    def shown(self) -> str:
        """The URI for messages and files: without a name and password that stand in it."""
        return without_secrets(self.uri)


def without_secrets(text: str) -> str:
    """A text with no password, token or key in it, nor a name and password in an address."""
    return redactor().text(text)


def tracking_store(storage: Path) -> TrackingStore:
    """The server or database that `MLFLOW_TRACKING_URI` names, else SQLite under `storage`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    root = storage.resolve()
    if not uri:
        return TrackingStore(_sqlite(root / "mlflow.db"), root / "mlartifacts")
    return TrackingStore(uri, None if _SERVER.match(uri) else root / "mlartifacts")


def _sqlite(path: Path) -> str:
    """The URI of a database, whatever characters its path has."""
    text = str(path)
    if "%" in text or "?" in text:
        # Under its short name MLflow would make a folder of the text as it stands here.
        return f"sqlite+pysqlite:///{text.replace('%', '%25').replace('?', '%3F')}"
    return f"sqlite:///{text}"
