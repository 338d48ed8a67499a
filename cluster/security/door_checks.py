"""What of Ray and MLflow stands open: here, at a cluster, and where runs are logged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import urlsplit

from cluster.security import mlflow_doors
from cluster.security.checks import Check, some
from cluster.security.doors import (
    Listener,
    is_loopback,
    parse_address,
    try_door,
    try_ray_port,
)
from cluster.security.secrecy import mlflow_credentials

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
        names = some([f"{one.name} {one.host}:{one.port}" for one in control])
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


def _ports(ports: Iterable[Listener]) -> str:
    return some(sorted({str(one.port) for one in ports}, key=int))
