"""Starts MLflow's server with basic auth over PostgreSQL; compose.yaml and kubernetes.yaml run it.

Every secret comes from a file. One that is missing, short or well known ends the start with its
name. None of them reaches a command line: PostgreSQL's password goes by libpq's password file, the
administrator's by the environment of the server alone.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

_SHORTEST = 16
_USER = "mlflow"
_STARTING_S = 120.0
_REMEDY = "write one with `openssl rand -hex 24`"


class Refused(Exception):
    """The server cannot start as it is set up; one line."""


def read_secret(settings: Mapping[str, str], name: str) -> str:
    """The secret in the file that NAME_FILE names, or in /run/secrets.

    Raises:
        Refused: if there is none, or it can be guessed.
    """
    path = Path(settings.get(f"{name.upper()}_FILE") or f"/run/secrets/{name}")
    try:
        secret = path.read_text().strip()
    except OSError as error:
        raise Refused(f"the secret {name} cannot be read ({error}): {_REMEDY}") from None
    if len(secret) < _SHORTEST:
        raise Refused(
            f"the secret {name} in {path} has {len(secret)} characters, fewer than {_SHORTEST}: "
            f"{_REMEDY}"
        )
    if len(set(secret)) < _SHORTEST // 2 or "password" in secret.lower():
        raise Refused(f"the secret {name} in {path} can be guessed: {_REMEDY}")
    return secret


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)


def prepare(settings: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The server's command line and what it needs in its environment beside `settings`.

    Raises:
        Refused: a secret or a setting is missing.
    """
    host, port = settings.get("POSTGRES_HOST", ""), settings.get("POSTGRES_PORT", "5432")
    hosts = settings.get("MLFLOW_ALLOWED_HOSTS", "")
    if not host:
        raise Refused("POSTGRES_HOST is not set: say where PostgreSQL is")
    if not hosts or "*" in [entry.strip() for entry in hosts.split(",")]:
        raise Refused("MLFLOW_ALLOWED_HOSTS must list the names this server is reached by, not *")
    database = read_secret(settings, "postgres_password")
    admin = read_secret(settings, "mlflow_admin_password")
    key = read_secret(settings, "mlflow_secret_key")

    run = Path(settings.get("MLFLOW_RUN_DIR", "/run/mlflow"))
    escaped = database.replace("\\", "\\\\").replace(":", "\\:")
    write_private(run / "pgpass", f"{host}:{port}:*:{_USER}:{escaped}\n")
    server = f"postgresql://{_USER}@{host}:{port}"
    write_private(
        run / "auth.ini",
        "[mlflow]\n"
        f"default_permission = {settings.get('MLFLOW_DEFAULT_PERMISSION', 'READ')}\n"
        f"database_uri = {server}/mlflow_auth\n"
        f"admin_username = {settings.get('MLFLOW_ADMIN', 'admin')}\n",
    )
    command = [
        *("mlflow", "server", "--app-name", "basic-auth", "--workers", "2"),
        *("--host", settings.get("MLFLOW_BIND", "0.0.0.0")),
        *("--port", settings.get("MLFLOW_BIND_PORT", "5000"), "--allowed-hosts", hosts),
        *("--backend-store-uri", f"{server}/mlflow"),
        *("--artifacts-destination", settings.get("MLFLOW_ARTIFACTS", "/artifacts")),
    ]
    return command, {
        "PGPASSFILE": str(run / "pgpass"),
        "MLFLOW_AUTH_CONFIG_PATH": str(run / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": admin,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": key,
    }


def make_databases(host: str, port: str, deadline: float) -> None:
    """Waits for PostgreSQL and makes the databases of runs and of users where they are missing.

    Args:
        host: where PostgreSQL is.
        port: the port it listens on.
        deadline: until when it is waited for, by the monotonic clock.

    Raises:
        Refused: if it does not answer in time, or not to this password.
    """
    psycopg: Any = import_module("psycopg")
    while True:
        try:
            # CREATE DATABASE cannot run in a transaction, hence autocommit.
            connection = psycopg.connect(
                host=host, port=port, user=_USER, dbname="postgres", autocommit=True
            )
            break
        except psycopg.OperationalError as error:
            line = str(error).strip().splitlines()[-1]
            if "authentication failed" in line or time.monotonic() > deadline:
                raise Refused(f"PostgreSQL at {host}:{port} does not let us in: {line}") from None
            time.sleep(1.0)
    try:
        with connection.cursor() as cursor:
            for name in ("mlflow", "mlflow_auth"):
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
                if cursor.fetchone() is None:
                    cursor.execute(f'CREATE DATABASE "{name}"')
    finally:
        connection.close()


def main() -> None:
    """Becomes the server, or with `upgrade` brings its database along; or ends with one line."""
    try:
        command, environment = prepare(os.environ)
        os.environ.update(environment)
        make_databases(
            os.environ["POSTGRES_HOST"],
            os.environ.get("POSTGRES_PORT", "5432"),
            time.monotonic() + _STARTING_S,
        )
    except Refused as error:
        sys.stderr.write(f"mlflow: {error}\n")
        sys.exit(2)
    if sys.argv[1:] == ["upgrade"]:
        command = ["mlflow", "db", "upgrade", command[command.index("--backend-store-uri") + 1]]
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
