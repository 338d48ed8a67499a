"""Who may come in: which addresses the network reaches, and whether a door asks for a token.

A door is tried the way a stranger would: without a token, by a request that only reads.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import psutil

FLAG = "--i-know-this-is-open"
# What a stranger is told: asked for a token, let in, nobody there, or something else there.
Door = Literal["guarded", "open", "silent", "foreign"]

_WORST_FIRST: tuple[Door, ...] = ("open", "guarded", "foreign")
_PATIENCE = 5.0
_RAY_PORTS = {"ray": 10001, "http": 8265, "https": 443, "gcs": 6379}
# What stands in the command lines of Ray's processes.
_RAYS_WORDS = (
    *("/ray/core/src/ray/", "/ray/dashboard/", "/ray/autoscaler/_private/", "/ray/_private/"),
    "ray.util.client.server",
)
# Reads that change nothing; each is refused by a Ray that asks for tokens.
_JOBS = "/api/jobs/"
_GCS_READ = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
_CLIENT_READ = "/ray.rpc.RayletDriver/ClusterInfo"
_RAY_READS = (
    _GCS_READ,
    _CLIENT_READ,
    "/ray.rpc.NodeManagerService/GetResourceLoad",
    "/ray.rpc.CoreWorkerService/NumPendingTasks",
    "/ray.rpc.LogService/ListLogs",
)

# Any other code comes from a Ray that has taken the call.
_DOORS_BY_CODE: dict[str, Door] = {
    "UNAUTHENTICATED": "guarded",
    "PERMISSION_DENIED": "guarded",
    **dict.fromkeys(("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL"), "foreign"),
}


class OpenToNetworkError(Exception):
    """Something is open to the network without authentication; one line with the remedy."""


@dataclass(frozen=True)
class RayAddress:
    """An address of a Ray cluster.

    Attributes:
        kind: The job API and dashboard (http, https), Ray client (ray), or Ray itself (gcs).
    """

    kind: Literal["http", "https", "ray", "gcs"]
    host: str
    port: int

    def __str__(self) -> str:
        scheme = "" if self.kind == "gcs" else f"{self.kind}://"
        return f"{scheme}{_bracketed(self.host)}:{self.port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def parse_address(address: str) -> RayAddress:
    """`http(s)://host:port`, `ray://host:port` or `host:port`, without a name and password in it.

    Raises:
        ValueError: if it is none of these.
    """
    try:
        parts = urlsplit(address if "://" in address else f"gcs://{address}")
        kind, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        kind, host, port = "", None, None
    if kind not in ("http", "https", "ray", "gcs") or not host:
        scheme, separator, rest = address.rpartition("://")
        shown = scheme + separator + rest.rpartition("@")[2]
        raise ValueError(f"{shown} is no Ray address: give http://HOST:8265")
    return RayAddress(kind, host, port or _RAY_PORTS[kind])  # type: ignore[arg-type]


def is_loopback(host: str) -> bool:
    """Whether all a host's name stands for is this machine's loopback.

    An unknown name is not.
    """
    try:
        found = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(_is_loopback_ip(str(entry[4][0])) for entry in found)


def _is_loopback_ip(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


@dataclass(frozen=True)
class Listener:
    """A TCP port of this machine that waits for connections; without a pid another user's.

    It is bound to `host`; `0.0.0.0` and `::` are all of this machine's addresses.
    """

    host: str
    port: int
    pid: int | None
    name: str
    command: tuple[str, ...]

    @property
    def exposed(self) -> bool:
        """Whether more than loopback reaches it."""
        return not _is_loopback_ip(self.host)

    @property
    def owner(self) -> Literal["ray", "mlflow", "other"]:
        """Whose door it is, by the command line."""
        words = " ".join(self.command)
        called = self.name.startswith(("ray::", "raylet", "gcs_server"))
        if called or words.startswith("ray::") or any(part in words for part in _RAYS_WORDS):
            return "ray"
        if "mlflow" in words and ("server" in words or "uvicorn" in words or "gunicorn" in words):
            return "mlflow"
        return "other"


def listeners() -> list[Listener]:
    """What waits for TCP connections on this machine, by port; one entry for each bound address."""
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):  # not all systems show others' ports
        connections = []
    found = {}
    for connection in connections:
        if connection.status != psutil.CONN_LISTEN:
            continue
        host, port = connection.laddr.ip, connection.laddr.port
        found[(port, host)] = Listener(host, port, connection.pid, *_process(connection.pid))
    return [found[key] for key in sorted(found)]


def _process(pid: int | None) -> tuple[str, tuple[str, ...]]:
    try:
        if pid is not None:
            process = psutil.Process(pid)
            return process.name(), tuple(process.cmdline())
    except (psutil.Error, OSError):
        pass  # it has ended, or is another user's
    return "?", ()


def try_door(address: RayAddress, timeout: float = _PATIENCE) -> Door:
    """Knocks at a Ray address without a token."""
    if address.kind in ("http", "https"):
        return try_http(f"{address}{_JOBS}", timeout)
    return try_grpc(
        address.host, address.port, _GCS_READ if address.kind == "gcs" else _CLIENT_READ, timeout
    )


def try_http(url: str, timeout: float = _PATIENCE, content: str = "json") -> Door:
    """Reads a page without credentials, proxies or redirects.

    Args:
        url: the address of the page.
        timeout: how many seconds to wait.
        content: what the type of the page must hold; one of another type is somebody else's.
    """
    try:
        with plain_opener().open(url, timeout=timeout) as answer:
            is_it = answer.status == 200 and content in answer.headers.get("Content-Type", "")
            return "open" if is_it else "foreign"
    except urllib.error.HTTPError as error:
        return "guarded" if error.code in (401, 403) else "foreign"
    except OSError as error:
        return "silent" if isinstance(getattr(error, "reason", error), OSError) else "foreign"
    except (http.client.HTTPException, ValueError, EOFError):
        return "foreign"  # whoever answers with something other than HTTP is there, but is not it


def try_ray_port(host: str, port: int, timeout: float = _PATIENCE) -> Door | Literal["metrics"]:
    """Knocks at a port of some process of Ray's, whichever that is.

    Args:
        host: the machine.
        port: the port.
        timeout: how many seconds to wait for each answer.

    Returns:
        "metrics" for one that shows its figures to everybody and can do no more.
    """
    url = f"http://{_bracketed(host)}:{port}"
    doors = {try_http(url + _JOBS, timeout)}
    if doors == {"foreign"}:  # another web server of Ray's, or none
        if try_http(f"{url}/metrics", timeout, "text/plain") == "open":
            return "metrics"
        doors = {try_grpc(host, port, method, timeout) for method in _RAY_READS}
    for door in _WORST_FIRST:
        if door in doors:
            return door
    return "silent"


def plain_opener() -> urllib.request.OpenerDirector:
    """Opens addresses without proxies; nobody sends it, nor what it carries, elsewhere."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def try_grpc(host: str, port: int, method: str, timeout: float = _PATIENCE) -> Door:
    """Calls a method of Ray with an empty request and no token.

    Args:
        host: the machine.
        port: the port.
        method: the full name of the method.
        timeout: how many seconds to wait for each answer.
    """
    # Here, as it takes a while; it comes with Ray.
    import grpc

    try:
        socket.create_connection((host, port), timeout).close()
    except OSError:
        return "silent"
    target, options = f"{_bracketed(host)}:{port}", [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(target, options=options) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=timeout)
        except grpc.RpcError as error:
            return _DOORS_BY_CODE.get(error.code().name, "open")
    return "open"


def refuse_open(address: str | None, allowed: bool = False) -> None:
    """Refuses a Ray cluster that lets strangers in, unless that is allowed.

    A cluster that answers without a token is one to which anybody who reaches it can submit code.
    Only one whose ports are bound to this machine's loopback alone may do so; Ray's own usually
    listen on every interface. A tunnel's end on loopback is somebody else's door. What does not
    answer is left for the connection to report; `local`, and `auto` without a cluster, are fine.

    Raises:
        OpenToNetworkError: if it is open; one line with the remedy.
        ValueError: if it is no address.
    """
    if allowed:
        return
    if address == "auto":
        from cluster.probe import AddressError, resolve  # here: Ray takes a second

        try:
            address = resolve(address)
        except AddressError:
            return
    if not address or address == "local":
        return
    parsed = parse_address(address)
    if try_door(parsed) != "open" or _is_on_loopback_alone(parsed):
        return
    raise OpenToNetworkError(
        f"the Ray cluster at {parsed} asks nobody for a token, so anyone who reaches it can run "
        "code there: start it with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE on every node "
        f"(docs/README.md), or give {FLAG}"
    )


def refuse_open_host(host: str, what: str, remedy: str, allowed: bool = False) -> None:
    """Refuses to listen beyond loopback without authentication.

    Args:
        host: the address to listen on.
        what: what would listen there.
        remedy: what to do instead.
        allowed: whether the user has said that this is meant.

    Raises:
        OpenToNetworkError: if `host` is not loopback and it is not allowed.
    """
    if allowed or is_loopback(host):
        return
    raise OpenToNetworkError(
        f"{what} on {host} would be open to everybody who reaches this machine, without a "
        f"password: {remedy}, or give {FLAG}"
    )


def _is_on_loopback_alone(address: RayAddress) -> bool:
    if not is_loopback(address.host):
        return False
    here = listeners()
    at_port = [one for one in here if one.port == address.port]
    is_ray_here = bool(at_port) and all(one.owner == "ray" for one in at_port)
    return is_ray_here and not any(one.exposed for one in here if one.owner == "ray")
