"""What of Ray and MLflow stands open: here, at a cluster, and where runs are logged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from cluster.doctor import Check, some
from cluster.security.doors import (
    Listener,
    is_loopback,
    parse_address,
    try_door,
    try_http,
    try_ray_port,
)

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
_MLFLOW_READ = "/api/2.0/mlflow/experiments/search?max_results=1"
_GUARD_RAY = (
    "start Ray with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE on every node, or keep the "
    "network out"
)
_GUARD_METRICS = "Ray cannot guard them: keep the network out with a firewall or network policy"
_GUARD_MLFLOW = "bind it to 127.0.0.1 (`tokenpool ui` does), or give it passwords (cluster/mlflow/)"


def check_listeners(here: Sequence[Listener]) -> Iterator[Check]:
    """What of Ray and MLflow waits for connections here, and what it does with strangers."""
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


def _check_ray_ports(own: list[Listener], exposed: list[Listener]) -> Iterator[Check]:
    doors = dict(zip(exposed, _knock([(_reach(one), one.port) for one in exposed]), strict=True))
    opened = [f"{one.name} {one.host}:{one.port}" for one, door in doors.items() if door == "open"]
    if opened:
        yield Check("Ray ports", "fail", f"anyone who reaches this machine may use {some(opened)}",
                    _GUARD_RAY, is_door=True)  # fmt: skip
    else:
        yield Check("Ray ports", "ok", f"{len(own)} open, {len(exposed)} of them to the network: "
                    "none lets a stranger in")  # fmt: skip
    metrics = [one for one, door in doors.items() if door == "metrics"]
    if metrics:
        yield Check("Ray metrics", "warn", f"{_ports(metrics)} show figures (nodes, jobs, load) to "
                    "everybody, and take no orders", _GUARD_METRICS)  # fmt: skip


def _knock(ports: list[tuple[str, int]]) -> list[str]:
    """What a stranger is told at some ports, asked side by side: one that hangs takes seconds."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        return list(pool.map(lambda end: try_ray_port(end[0], end[1], _KNOCK_SECONDS), ports))


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
    others = [port for port in _RAY_PORTS if port != parsed.port]
    doors = dict(zip(others, _knock([(parsed.host, port) for port in others]), strict=True))
    doors[parsed.port] = door
    opened, guarded, metrics = (
        sorted(port for port, door in doors.items() if door == kind)
        for kind in ("open", "guarded", "metrics")
    )
    if opened:
        names = ", ".join(f"{port} ({_RAY_PORTS.get(port, 'given')})" for port in opened)
        yield Check(name, "fail", f"{parsed.host} lets strangers in at port {names}", _GUARD_RAY,
                    is_door=True)  # fmt: skip
    else:
        ports = ", ".join(map(str, guarded))
        yield Check(name, "ok", f"{parsed.host} asks for a token at port {ports}")
    if metrics:
        yield Check("cluster metrics", "warn", f"{parsed.host} shows figures to everybody at "
                    f"{metrics}", _GUARD_METRICS)  # fmt: skip
    if parsed.kind == "http" and not is_loopback(parsed.host):
        yield Check(
            "cluster token",
            "warn",
            f"{parsed} is not encrypted: whoever is on the way can read the token",
            "stay within a private network, or use a tunnel (ssh -L) or https",
        )


def check_mlflow(tracking_uri: str, here: Sequence[Listener]) -> Iterator[Check]:
    """The servers of one's own: the one that is logged to, and those that listen here.

    `tracking_uri` is `MLFLOW_TRACKING_URI`; empty where runs are kept in a file.
    """
    # An exposed one last, so that it counts where a port is bound to several addresses.
    by_reach = sorted(here, key=lambda one: one.exposed)
    servers = {one.port: one for one in by_reach if one.owner == "mlflow"}
    try:
        parts = urlsplit(tracking_uri)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        yield Check("MLflow", "fail", "MLFLOW_TRACKING_URI is no address", "give http://HOST:5000")
        return
    if parts.scheme in ("http", "https"):
        is_here = is_loopback(host)
        exposed = not is_here or any(one.port == port and one.exposed for one in here)
        base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        yield _check_server(base, exposed)
        if is_here and port is not None:
            servers.pop(port, None)
    elif not tracking_uri:
        yield Check("MLflow", "ok", "runs are kept in a file under the storage folder")
    for one in servers.values():
        yield _check_server(f"http://{_reach(one)}:{one.port}", one.exposed)


def _check_server(url: str, exposed: bool) -> Check:
    name, door = "MLflow", try_http(url + _MLFLOW_READ, _KNOCK_SECONDS)
    if door in ("silent", "foreign"):
        what = "does not answer" if door == "silent" else "answers, but not as an MLflow server"
        return Check(name, "warn", f"{url} {what}", "is it up, and is the address right?")
    if door == "guarded":
        return Check(name, "ok", f"{url} asks for a password")
    if exposed:
        return Check(name, "fail", f"{url} lets everybody read and delete runs", _GUARD_MLFLOW,
                     is_door=True)  # fmt: skip
    return Check(name, "ok", f"{url} asks for no password, and only this machine reaches it")


def _ports(ports: Iterable[Listener]) -> str:
    return some(sorted({str(one.port) for one in ports}, key=int))
