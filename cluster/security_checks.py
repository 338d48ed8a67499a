"""`tokenpool doctor --security`: what stands open, what is out of date, and what would leak."""

from __future__ import annotations

import configparser
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from cluster import advisories, mlflow_doors
from cluster.checks import Check
from cluster.redact import MIN_KNOWN_LENGTH, Redactor, credentials_in, is_secret_name, spellings
from cluster.secrecy import (
    known_secrets,
    mlflow_credentials,
    mlflow_credentials_file,
    ray_token_file,
    redactor,
)
from cluster.security import (
    FLAG,
    Listener,
    is_loopback,
    listeners,
    parse_address,
    try_door,
    try_ray_port,
)

_MIN_TOKEN_LENGTH = 32
_KNOCK_SECONDS = 2.0
# Where a Ray head listens unless it is told otherwise.
_RAY_PORTS = {
    6379: "Ray itself (GCS)",
    8265: "dashboard and job API",
    10001: "Ray client",
    44217: "autoscaler's metrics",
    44227: "dashboard's metrics",
    52365: "a node's agent",
}
_GUARD_RAY = (
    "start Ray with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE on every node, or keep the "
    "network out"
)
_GUARD_MLFLOW = "bind it to 127.0.0.1 (`tokenpool ui` does), or give it passwords (cluster/mlflow/)"
_SHOWN = 4
_LARGEST_FILE = 64 << 20
_WRITTEN = ("*.jsonl", "*.json", "*.yaml", "*.csv", "*.html", "*.md", "*.log", "*.db", "*.txt")
# Ray shows these in its dashboard.
_SHOWN_BY_RAY = ("RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_RUNTIME_ENV")


def security_checks(
    storage: Path, *, address: str | None = None, open_is_meant: bool = False
) -> list[Check]:
    """All findings about safety on this machine, and of a cluster where an address is given.

    Args:
        storage: The folder that keeps the searches.
        address: Of a cluster, as for `--address`.
        open_is_meant: What stands open is a warning and not a failure.
    """
    environment, here = dict(os.environ), listeners()
    found = [
        *check_listeners(here),
        *(check_cluster(address) if address else []),
        *check_tokens(environment),
        *check_mlflow(environment, here),
        *check_versions(
            {one.package: advisories.installed(one.package) for one in advisories.ADVISORIES}
        ),
        *check_environment(environment),
        check_written(storage, environment),
        check_storage(storage),
    ]
    if not open_is_meant:
        return found
    return [
        Check(one.name, "warn", one.found, f"{one.remedy} (allowed by {FLAG})")
        if one.status == "fail" and one.is_door
        else one
        for one in found
    ]


def check_listeners(here: Iterable[Listener]) -> Iterator[Check]:
    """What of Ray and MLflow waits for connections here, and what it does with strangers."""
    here = list(here)
    for owner, what in (("ray", "Ray"), ("mlflow", "MLflow")):
        own = [one for one in here if one.owner == owner]
        exposed = [one for one in own if one.exposed]
        if not own:
            yield Check(f"{what} ports", "ok", "none is open on this machine")
        elif not exposed:
            yield Check(f"{what} ports", "ok", f"{_ports(own)} on loopback alone")
        elif owner == "ray":
            yield from _check_ray_ports(own, exposed)
        # MLflow's are asked by `check_mlflow`, which knows how.
    others = [one for one in here if one.owner == "other" and one.exposed]
    if others:
        yield Check(
            "other ports", "ok", f"{_ports(others)} reachable from the network, not this program's"
        )


def _check_ray_ports(own: list[Listener], exposed: list[Listener]) -> Iterator[Check]:
    doors = {one: try_ray_port(_reach(one), one.port, _KNOCK_SECONDS) for one in exposed}
    metrics = [one for one, door in doors.items() if door == "metrics"]
    control = [one for one, door in doors.items() if door == "open"]
    if control:
        names = ", ".join(f"{one.name} {one.host}:{one.port}" for one in control[:_SHOWN])
        yield Check(
            "Ray ports", "fail", f"anyone who reaches this machine may use {names}", _GUARD_RAY,
            is_door=True,
        )  # fmt: skip
    else:
        yield Check(
            "Ray ports",
            "ok",
            f"{len(own)} open, {len(exposed)} of them to the network: none lets a stranger in",
        )
    if metrics:
        yield Check(
            "Ray metrics",
            "warn",
            f"{_ports(metrics)} show figures (nodes, jobs, load) to everybody, and take no orders",
            "Ray cannot guard them: keep the network out with a firewall or network policy",
        )


def _reach(one: Listener) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(one.host, one.host)


def check_cluster(address: str) -> Iterator[Check]:
    """How a cluster's doors treat a stranger, at the address given and at Ray's usual ports."""
    name = "cluster"
    try:
        parsed = parse_address(address)
    except ValueError as error:
        yield Check(name, "fail", "no address", str(error))
        return
    door = try_door(parsed)
    if door in ("silent", "foreign"):
        what = "nothing answers" if door == "silent" else "what answers is no Ray cluster"
        yield Check(name, "fail", f"{what} at {parsed}", "give http://HOST:8265 of a running one")
        return
    opened, guarded = ([parsed.port], []) if door == "open" else ([], [parsed.port])
    metrics: list[int] = []
    for port in _RAY_PORTS:
        if port == parsed.port:
            continue
        found = try_ray_port(parsed.host, port, _KNOCK_SECONDS)
        {"open": opened, "guarded": guarded, "metrics": metrics}.get(found, []).append(port)
    if opened:
        names = ", ".join(f"{port} ({_RAY_PORTS.get(port, 'given')})" for port in opened)
        yield Check(
            name, "fail", f"{parsed.host} lets strangers in at port {names}", _GUARD_RAY,
            is_door=True,
        )  # fmt: skip
    else:
        ports = ", ".join(map(str, sorted(guarded)))
        yield Check(name, "ok", f"{parsed.host} asks for a token at port {ports}")
    if metrics:
        yield Check(
            "cluster metrics", "warn", f"{parsed.host} shows figures to everybody at {metrics}",
            "keep the network out with a firewall or network policy",
        )  # fmt: skip
    if parsed.kind == "http" and not is_loopback(parsed.host):
        yield Check(
            "cluster token",
            "warn",
            f"{parsed} is not encrypted: whoever is on the way can read the token",
            "stay within a private network, or use a tunnel (ssh -L) or https",
        )


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
        yield _check_length(name, _read(path).strip(), str(path))
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
        yield from _check_auth_config(Path(auth))


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
        yield Check(name, "fail", f"{path} has mode {mode:04o}: others can read it",
                    f"chmod 600 {path}")  # fmt: skip
    else:
        yield Check(name, "ok", f"{path} has mode {mode:04o}")
    if folder.st_mode & 0o022 and not folder.st_mode & stat.S_ISVTX:
        yield Check(name, "fail", f"others can replace {path}: they may write to its folder",
                    f"chmod go-w {path.resolve().parent}")  # fmt: skip
    if status.st_uid not in (os.getuid(), 0):
        yield Check(name, "fail", f"{path} belongs to somebody else", "make one of your own")


def _check_auth_config(path: Path) -> Iterator[Check]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(path)
        password = parser["mlflow"].get("admin_password", "")
    except (OSError, configparser.Error, KeyError, UnicodeDecodeError):
        return
    if password in {known for _, known in mlflow_doors.WELL_KNOWN}:
        yield Check("MLflow auth", "fail", f"{path} has a password everybody knows",
                    "choose another before the server's first start")  # fmt: skip


def check_mlflow(environment: Mapping[str, str], here: Iterable[Listener]) -> Iterator[Check]:
    """The servers of one's own: the one that is logged to, and those that run here."""
    uri = environment.get("MLFLOW_TRACKING_URI", "")
    asked: set[tuple[str, int]] = set()
    if uri.startswith(("http://", "https://")):
        parts = urlsplit(uri)
        asked.add((parts.hostname or "", parts.port or 0))
        yield from _check_server(mlflow_doors.base_url(uri), _is_exposed(parts.hostname or "",
                                 parts.port or 0, here))  # fmt: skip
        _, password = mlflow_credentials(environment)
        sends = password or environment.get("MLFLOW_TRACKING_TOKEN") or "@" in parts.netloc
        if parts.scheme == "http" and sends and not is_loopback(parts.hostname or ""):
            yield Check(
                "MLflow password",
                "warn",
                f"it travels unencrypted to {parts.hostname}",
                "use https, or a tunnel",
            )
        if "@" in parts.netloc:
            yield Check(
                "MLflow password",
                "fail",
                "it stands in MLFLOW_TRACKING_URI, which MLflow and others log",
                "use MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "~/.mlflow/credentials",
            )
    elif not uri:
        yield Check("MLflow", "ok", "runs are kept in a file under the storage folder")
    if environment.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true"):
        yield Check(
            "MLflow", "fail", "MLFLOW_TRACKING_INSECURE_TLS trusts any server's certificate",
            "unset it; MLFLOW_TRACKING_SERVER_CERT_PATH names one to trust",
        )  # fmt: skip
    for one in here:
        if one.owner == "mlflow" and not any(
            port == one.port and is_loopback(host) for host, port in asked
        ):
            asked.add(("127.0.0.1", one.port))
            yield from _check_server(f"http://{_reach(one)}:{one.port}", one.exposed)


def _is_exposed(host: str, port: int, here: Iterable[Listener]) -> bool:
    """Whether others reach it too: it is elsewhere, or here on more than loopback."""
    if not is_loopback(host):
        return True
    return any(one.port == port and one.exposed for one in here)


def _check_server(url: str, exposed: bool) -> Iterator[Check]:
    door = mlflow_doors.try_server(url, _KNOCK_SECONDS)
    name = "MLflow"
    if door in ("silent", "foreign"):
        what = "does not answer" if door == "silent" else "answers, but not as an MLflow server"
        yield Check(name, "warn", f"{url} {what}", "is it up, and is the address right?")
        return
    if door == "open" and exposed:
        yield Check(name, "fail", f"{url} lets everybody read and delete runs", _GUARD_MLFLOW,
                    is_door=True)  # fmt: skip
    elif door == "open":
        yield Check(name, "ok", f"{url} asks for no password, and only this machine reaches it")
    else:
        known = mlflow_doors.well_known_password(url, _KNOCK_SECONDS)
        if known:
            yield Check(name, "fail", f"{url} takes a password everybody knows ({known})",
                        "change it: mlflow.server.get_app_client('basic-auth', …)"
                        ".update_user_password", is_door=True)  # fmt: skip
        else:
            yield Check(name, "ok", f"{url} asks for a password, and takes no well-known one")
    if mlflow_doors.checks_host(url, _KNOCK_SECONDS) is False:
        yield Check(
            name,
            "fail" if door == "open" else "warn",
            f"{url} answers requests meant for other hosts, so web pages can reach it through a "
            "browser (DNS rebinding)",
            "start it without --gunicorn-opts and --disable-security-middleware, with "
            "--allowed-hosts naming its own",
        )


def check_versions(versions: dict[str, str | None]) -> Iterator[Check]:
    """Packages below a version that mends a published fault."""
    found = advisories.open_advisories(versions)
    for one in found:
        yield Check(
            f"{one.package} {versions[one.package]}",
            "fail",
            f"{one.identifier}: {one.what}",
            f"install {one.package} {one.fixed} or later",
        )
    if not found:
        count = len({one.package for one in advisories.ADVISORIES})
        yield Check(
            "versions", "ok", f"{count} packages are beyond all {len(advisories.ADVISORIES)} "
            "advisories that this program knows of",
        )  # fmt: skip


def check_environment(environment: Mapping[str, str]) -> Iterator[Check]:
    """Secrets in the environment that others would write down or show."""
    held = sorted(name for name, value in environment.items() if value and is_secret_name(name))
    yield Check(
        "secrets",
        "ok",
        f"{len(held)} variables hold some ({_some(held)}): this program writes none of them down"
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
            f"{_some(in_urls)}: an address with a password in it, which programs log as it is",
            "keep name and password apart from the address",
        )
    shown = [
        name
        for name in _SHOWN_BY_RAY
        if Redactor(known_secrets(environment)).text(environment.get(name, ""))
        != environment.get(name, "")
    ]
    if shown:
        yield Check("secrets", "fail", f"{_some(shown)} holds one, and Ray's dashboard shows it",
                    "leave it out; set it where the nodes are started")  # fmt: skip
    exposed = _in_command_lines(known_secrets(environment))
    if exposed:
        yield Check(
            "secrets",
            "fail",
            f"every user of this machine can read one in the command line of {_some(exposed)}",
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
    found = [path for path in _written_files(storage) if _holds(path, needles)] if needles else []
    if found:
        return Check(
            "storage",
            "fail",
            f"a secret stands in {_some([str(path.relative_to(storage)) for path in found])}",
            "change the secret, then delete or mend the file",
        )
    return Check("storage", "ok", f"no secret of this environment stands in files of {storage}")


def _written_files(storage: Path) -> Iterator[Path]:
    for pattern in _WRITTEN:
        for path in storage.glob(f"**/{pattern}"):
            try:
                if path.is_file() and path.stat().st_size <= _LARGEST_FILE:
                    yield path
            except OSError:
                continue


def _holds(path: Path, needles: list[bytes]) -> bool:
    try:
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


def _ports(some: Iterable[Listener]) -> str:
    return _some(sorted({str(one.port) for one in some}, key=int))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return redactor().text(", ".join(names[:_SHOWN])) + more


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
