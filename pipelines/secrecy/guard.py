"""What this process knows to be secret, and the edges where texts leave it.

Everything that is written down or shown passes one of these: the ledger, logs, tracebacks, the
last line on the terminal, the reason a trial failed for. `redact` says what is hidden.
"""

from __future__ import annotations

import base64
import configparser
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from pipelines.secrecy.redact import Redactor, credentials_in, is_secret_name

_LARGEST_TOKEN_FILE = 4096
_cached: tuple[frozenset[tuple[str, str]], Redactor] | None = None


def known_secrets(environment: Mapping[str, str]) -> set[str]:
    """The values that are secret in an environment, and in the files it names for them.

    Variables with a secret's name, passwords in addresses, Ray's token (`RAY_AUTH_TOKEN`,
    `RAY_AUTH_TOKEN_PATH` or the default file) and MLflow's password (variables or credentials
    file), also as the `Basic` header they make.
    """
    found = {value for name, value in environment.items() if is_secret_name(name) and value}
    for value in environment.values():
        if "://" in value:
            found |= credentials_in(value)
    found.add(read_token(ray_token_file(environment)))
    user, password = mlflow_credentials(environment)
    if password:
        found |= {password, base64.b64encode(f"{user}:{password}".encode()).decode()}
    # Flags and counts are no secrets, whatever their variable is called.
    return {secret for secret in found if len(set(secret)) > 2}


def ray_token_file(environment: Mapping[str, str]) -> Path:
    """Where Ray reads its token, if it is not in a variable."""
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    return Path(named) if named else _home(environment) / ".ray" / "auth_token"


def read_token(path: Path) -> str:
    """What the file of a token holds; nothing where it cannot be read."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_LARGEST_TOKEN_FILE).strip()
    except (OSError, UnicodeDecodeError):
        return ""


def mlflow_credentials_file(environment: Mapping[str, str]) -> Path:
    """Where MLflow's client reads a name and password, if they are not in variables."""
    return _home(environment) / ".mlflow" / "credentials"


def mlflow_credentials(environment: Mapping[str, str]) -> tuple[str, str]:
    """The name and password MLflow's client would use; empty where there are none."""
    user = environment.get("MLFLOW_TRACKING_USERNAME", "")
    password = environment.get("MLFLOW_TRACKING_PASSWORD", "")
    if password:
        return user, password
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(mlflow_credentials_file(environment))
        section = parser["mlflow"]
    except (OSError, configparser.Error, KeyError, UnicodeDecodeError):
        return user, ""
    return section.get("mlflow_tracking_username", user), section.get(
        "mlflow_tracking_password", ""
    )


def redactor() -> Redactor:
    """What hides this process's secrets; made anew when its environment has changed."""
    global _cached
    now = frozenset(os.environ.items())
    if _cached is None or _cached[0] != now:
        _cached = (now, Redactor(known_secrets(os.environ)))
    return _cached[1]


class RedactingFormatter(logging.Formatter):
    """A handler's own formatter, and no secret in what it makes, tracebacks included."""

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        """The record as the inner formatter has it, without secrets."""
        return redactor().text(self._inner.format(record))


def guard_process() -> None:
    """Takes secrets out of what this process logs and of the tracebacks it dies with.

    Call it after logging is set up; calling it again changes nothing.
    """
    # The last resort writes the warnings of processes that have set up no logging.
    handlers = [*logging.getLogger().handlers, logging.lastResort]
    for handler in filter(None, handlers):
        if not isinstance(handler.formatter, RedactingFormatter):
            handler.setFormatter(RedactingFormatter(handler.formatter))
    sys.excepthook = _print_traceback
    threading.excepthook = _print_thread_traceback


def show_traceback(error: BaseException) -> None:
    """Writes an exception's traceback to standard error, without secrets."""
    _print_traceback(type(error), error, error.__traceback__)


class CleanedError(RuntimeError):
    """In place of an exception whose message could not be changed: its type and message."""


@contextmanager
def clean_errors() -> Iterator[None]:
    """Exceptions that leave the block carry no secrets; type, frames and attributes stay.

    Raises:
        CleanedError: In place of one that keeps its message out of reach (those of pydantic).
    """
    try:
        yield
    except BaseException as error:
        shown = redactor()
        shown.error(error)
        text = str(error)
        clean = shown.text(text)
        if clean == text:
            raise
        raise CleanedError(f"{type(error).__name__}: {clean}").with_traceback(
            error.__traceback__
        ) from None


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(redactor().text(text))


def _print_thread_traceback(args: Any) -> None:
    if args.exc_type is SystemExit:
        return
    name = args.thread.name if args.thread is not None else "?"
    sys.stderr.write(f"Exception in thread {redactor().text(name)}:\n")
    _print_traceback(args.exc_type, args.exc_value, args.exc_traceback)


def _home(environment: Mapping[str, str]) -> Path:
    home = environment.get("HOME")
    return Path(home) if home else Path.home()
