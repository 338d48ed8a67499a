"""Who can read this program's secrets: files, variables, command lines, what was written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from cluster.doctor import Check, some
from cluster.security.doors import is_loopback
from pipelines.secrecy.guard import (
    known_secrets,
    mlflow_credentials,
    mlflow_credentials_file,
    ray_token_file,
    read_token,
)
from pipelines.secrecy.redact import (
    MIN_KNOWN_LENGTH,
    Redactor,
    credentials_in,
    is_secret_name,
    spellings,
)

_MIN_TOKEN_LENGTH = 32
_LARGEST_FILE = 64 << 20
_WRITTEN = ("*.jsonl", "*.json", "*.yaml", "*.csv", "*.html", "*.md", "*.log", "*.db", "*.txt")
# Ray shows these in its dashboard.
_SHOWN_BY_RAY = ("RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_RUNTIME_ENV")


def check_tokens(environment: Mapping[str, str]) -> Iterator[Check]:
    """Ray's token and MLflow's password: where they are, who can read them, how long they are."""
    mode, token = environment.get("RAY_AUTH_MODE", ""), environment.get("RAY_AUTH_TOKEN", "")
    path = ray_token_file(environment)
    name = "Ray token"
    if mode and mode.lower() != "token":
        yield Check(
            name,
            "fail",
            f"RAY_AUTH_MODE={mode}: clusters that are started from here let everybody in",
            "unset it, or set RAY_AUTH_MODE=token",
            is_door=True,
        )
    if token:
        yield _check_length(name, token, "RAY_AUTH_TOKEN")
    elif path.exists():
        yield from _check_secret_file(name, path)
        yield _check_length(name, read_token(path), str(path))
    elif "RAY_AUTH_TOKEN_PATH" in environment:
        yield Check(name, "fail", f"no file {path}", "make it, or unset RAY_AUTH_TOKEN_PATH")
    else:
        yield Check(
            name, "ok", "none needed: a search's own Ray gets a new one that lives as long as it"
        )
    credentials = mlflow_credentials_file(environment)
    if credentials.exists():
        yield from _check_secret_file("MLflow password", credentials)
    auth = environment.get("MLFLOW_AUTH_CONFIG_PATH")
    if auth and Path(auth).exists():
        yield from _check_secret_file("MLflow auth", Path(auth))


def check_tracking(environment: Mapping[str, str]) -> Iterator[Check]:
    """How MLflow's password travels, and whether a server's certificate is looked at."""
    name = "MLflow password"
    try:
        parts = urlsplit(environment.get("MLFLOW_TRACKING_URI", ""))
    except ValueError:  # `check_mlflow` says so
        return
    in_address = "@" in parts.netloc
    sent = mlflow_credentials(environment)[1] or environment.get("MLFLOW_TRACKING_TOKEN")
    if parts.scheme == "http" and (sent or in_address) and not is_loopback(parts.hostname or ""):
        yield Check(name, "warn", f"it travels unencrypted to {parts.hostname}",
                    "use https, or a tunnel")  # fmt: skip
    if in_address and parts.scheme in ("http", "https"):
        yield Check(
            name, "fail", "it stands in MLFLOW_TRACKING_URI, which MLflow and others log",
            "use MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or ~/.mlflow/credentials",
        )  # fmt: skip
    if environment.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true"):
        yield Check(
            "MLflow", "fail", "MLFLOW_TRACKING_INSECURE_TLS trusts any server's certificate",
            "unset it; MLFLOW_TRACKING_SERVER_CERT_PATH names one to trust",
        )  # fmt: skip


def _check_length(name: str, token: str, where: str) -> Check:
    if len(token) < _MIN_TOKEN_LENGTH or len(set(token)) < 8:
        return Check(
            name,
            "fail",
            f"the token in {where} is too short to be safe ({len(token)} characters)",
            "make one: python3 -c 'import secrets; print(secrets.token_hex(32))' > FILE; "
            "chmod 600 FILE",
        )
    return Check(name, "ok", f"{len(token)} characters in {where}")


def _check_secret_file(name: str, path: Path) -> Iterator[Check]:
    """Whether others may read a secret, or put another in its place."""
    try:
        status, folder = path.stat(), path.resolve().parent.stat()
    except OSError as error:
        yield Check(name, "fail", f"{path} cannot be looked at: {error.strerror}", "mend its mode")
        return
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        readable = _others_reach(path, mode)
        can = "others can read it" if readable else "only its folder keeps others from reading it"
        yield Check(name, "fail" if readable else "warn", f"{path} has mode {mode:04o}: {can}",
                    f"chmod 600 {path}")  # fmt: skip
    else:
        yield Check(name, "ok", f"{path} has mode {mode:04o}")
    if folder.st_mode & 0o022 and not folder.st_mode & stat.S_ISVTX:
        yield Check(name, "fail", f"others can replace {path}: they may write to its folder",
                    f"chmod go-w {path.resolve().parent}")  # fmt: skip
    if status.st_uid not in (os.getuid(), 0):
        yield Check(name, "fail", f"{path} belongs to somebody else", "make one of your own")


def _others_reach(path: Path, mode: int) -> bool:
    """Whether the folders above let those in who the mode lets read."""
    above = [folder.stat().st_mode for folder in path.resolve().parents]
    return any(
        mode & read and all(folder & enter for folder in above)
        for read, enter in ((0o060, 0o010), (0o006, 0o001))
    )


def check_environment(environment: Mapping[str, str]) -> Iterator[Check]:
    """Secrets in the environment that others would write down or show."""
    held = sorted(name for name, value in environment.items() if value and is_secret_name(name))
    yield Check(
        "secrets",
        "ok",
        f"{len(held)} variables hold some ({some(held)}): this program writes none of them down"
        if held
        else "no variable holds one",
    )
    in_urls = sorted(
        name
        for name, value in environment.items()
        if "://" in value and credentials_in(value) and name != "MLFLOW_TRACKING_URI"
    )
    if in_urls:
        yield Check(
            "secrets",
            "warn",
            f"{some(in_urls)}: an address with a password in it, which programs log as it is",
            "keep name and password apart from the address",
        )
    known = known_secrets(environment)
    shown = [
        name
        for name in _SHOWN_BY_RAY
        if Redactor(known).text(environment.get(name, "")) != environment.get(name, "")
    ]
    if shown:
        yield Check("secrets", "fail", f"{some(shown)} holds one, and Ray's dashboard shows it",
                    "leave it out; set it where the nodes are started")  # fmt: skip
    exposed = _in_command_lines(known)
    if exposed:
        yield Check(
            "secrets",
            "fail",
            f"every user of this machine can read one in the command line of {some(exposed)}",
            "hand it over in a variable or a file",
        )


def _in_command_lines(secrets: Iterable[str]) -> list[str]:
    telling = [secret for secret in secrets if len(secret) >= MIN_KNOWN_LENGTH]
    found = []
    for process in psutil.process_iter(["pid", "name", "cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if process.info["pid"] != os.getpid() and any(secret in words for secret in telling):
            found.append(f"{process.info['name']} ({process.info['pid']})")
    return found


def check_written(storage: Path, environment: Mapping[str, str]) -> Check:
    """Whether a secret of this environment stands in what searches have written."""
    needles = [
        text.encode()
        for secret in known_secrets(environment)
        if len(secret) >= MIN_KNOWN_LENGTH
        for text in spellings(secret)
    ]
    found = [
        str(path.relative_to(storage))
        for pattern in _WRITTEN
        for path in storage.glob(f"**/{pattern}")
        if _holds(path, needles)
    ]
    if found:
        return Check("storage", "fail", f"a secret stands in {some(found)}",
                     "change the secret, then delete or mend the file")  # fmt: skip
    return Check("storage", "ok", f"no secret of this environment stands in files of {storage}")


def _holds(path: Path, needles: list[bytes]) -> bool:
    try:
        if not needles or not path.is_file() or path.stat().st_size > _LARGEST_FILE:
            return False
        content = path.read_bytes()
    except OSError:
        return False
    return any(needle in content for needle in needles)


def check_storage(storage: Path) -> Check:
    """Whether others may change ledgers and checkpoints."""
    name = "storage"
    if not storage.is_dir():
        return Check(name, "ok", f"{storage} is not there yet")
    mode = storage.stat().st_mode
    if mode & stat.S_IWOTH:
        return Check(
            name, "fail", f"everybody may write to {storage}, and so change ledgers and models",
            f"chmod o-w {storage}",
        )  # fmt: skip
    return Check(name, "ok", f"{storage} has mode {stat.S_IMODE(mode):04o}")
