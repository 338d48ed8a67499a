"""Why MLflow takes no runs, in one line with the remedy.

MLflow, its databases and the network each say it in words of their own, often over several lines,
and seldom name what is to be done. Here are those that people meet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import UserError
from pipelines.tracking.tracking_store import TrackingStore, without_secrets

_MAKERS = {"alembic", "mlflow", "requests", "sqlalchemy", "sqlite3", "urllib3"}
_LONGEST = 200
_AGAIN = "`tokenpool track rebuild NAME` then logs a search anew from its ledger"
_OTHERS = (
    "give a database (sqlite:////FOLDER/mlflow.db) or a server (http://HOST:5000), or unset it: "
    "the runs are then in mlflow.db of the storage folder"
)

# Words in the error → what they mean, of the store called {0}.
_MEANINGS = (
    (r"filesystem tracking backend",
     "{0} is a folder, and MLflow keeps no runs in folders any more: set MLFLOW_TRACKING_URI to "
     "something else (" + _OTHERS + "); `mlflow migrate-filestore` takes over what is in it"),
    (r"unsupported URI|Invalid url|Unity Catalog tracking URI|Invalid database",
     "MLFLOW_TRACKING_URI is {0}, which MLflow does not take: " + _OTHERS),
    (r"not a database|disk image is malformed|[Ff]ile is encrypted",
     "the database {0} is broken: move it away; " + _AGAIN),
    (r"unable to open database file",
     "the database {0} cannot be opened: is it a file, in a folder that this user may write to?"),
    (r"readonly database|permission denied for",
     "the database {0} may not be written to by this user: change its rights, or name another one "
     "with MLFLOW_TRACKING_URI"),
    (r"database is locked",
     "the database {0} is locked by another program: end that, and do not keep it on a network "
     "file system"),
    (r"disk is full|No space left",
     "the database {0} cannot grow, as its disk is full: make room there"),
    (r"error code 401|UNAUTHENTICATED",
     "MLflow at {0} refuses access: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
     "MLFLOW_TRACKING_TOKEN"),
    (r"error code 403|PERMISSION_DENIED",
     "MLflow at {0} does not let this user do that: ask whoever runs it for the right to edit its "
     "experiments and models"),
    (r"ENDPOINT_NOT_FOUND|error code 404|error code 3\d\d|not in a valid JSON format",
     "what answers at {0} is no MLflow server: set MLFLOW_TRACKING_URI to the address of one"),
    (r"too many (\d+) error responses|error code (5\d\d|429)",
     "MLflow at {0} answers with error {1}: its own log says why"),
    (r"SSLError|CERTIFICATE_VERIFY",
     "MLflow at {0} cannot be spoken to over TLS: is it https, and its certificate one that this "
     "machine trusts (MLFLOW_TRACKING_SERVER_CERT_PATH)?"),
    (r"NameResolutionError|Failed to resolve|could not translate host name",
     "there is no host of that name: MLFLOW_TRACKING_URI is {0}"),
    (r"ProxyError",
     "the proxy did not reach MLflow at {0}: if none is needed for that host, name it in NO_PROXY"),
    (r"timed? ?out|Max retries exceeded|[Cc]onnection refused|ConnectionError|could not connect|"
     r"[Cc]onnection reset|Connection aborted",
     "MLflow at {0} does not answer: is it up, and reachable from here?"),
)  # fmt: skip


def explain(store: TrackingStore, error: Exception) -> str:
    """What an error of MLflow's means for a store: one line, without secrets."""
    if isinstance(error, UserError):
        return str(error)
    text = f"{getattr(error, 'error_code', '')} {error}"
    if re.search(r"out-of-date database schema|Can't locate revision", text):
        return _other_schema(store, text)
    for words, meaning in _MEANINGS:
        found = re.search(words, text)
        if found:
            said = next(filter(None, found.groups()), "")
            return meaning.format(store.shown, said)
    if type(error).__module__.partition(".")[0] in ("sqlalchemy", "sqlite3", "alembic"):
        return f"{store.shown} is not a database that MLflow can use ({first_line(error)})"
    return f"MLflow at {store.shown} failed: {first_line(error)}"


@contextmanager
def told(store: TrackingStore, *, all_errors: bool = True) -> Iterator[None]:
    """Errors of MLflow's as the user's; `all_errors`: those of other libraries as well.

    Raises:
        UserError: What went wrong, and what to do.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not all_errors and type(error).__module__.partition(".")[0] not in _MAKERS:
            raise
        raise UserError(explain(store, error), exit_code=1) from None


def first_line(error: Exception) -> str:
    """An exception's type and first line, without a password in an address; a user's as it is."""
    lines = str(error).strip().splitlines() or [""]
    line = without_secrets(lines[0])
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line[:_LONGEST]}"


def _other_schema(store: TrackingStore, text: str) -> str:
    import mlflow

    found = re.search(r"found version (\w+)|identified by '(\w+)'", text)
    revision = next(filter(None, found.groups()), "") if found else ""
    known = Path(mlflow.__file__).parent / "store/db_migrations/versions"
    is_older = bool(revision) and any(known.glob(f"{revision}*"))
    begun = f"the database {store.shown} was written by "
    if is_older:
        return (
            f"{begun}an older MLflow than this one ({mlflow.__version__}): keep a copy of it and "
            f"run `python -m mlflow db upgrade {store.shown}`, or move it away; {_AGAIN}"
        )
    return (
        f"{begun}another MLflow than this one ({mlflow.__version__}), which cannot read it: "
        f"install that one, or move the database away; {_AGAIN}"
    )
