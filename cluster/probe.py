"""Asks an address what it is, in seconds, before anything connects to it for good.

`ray.init` takes more than a minute over an address where nothing or something else listens, and
then ends the process; here each such case is one line.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import grpc
import ray
import requests
from ray.exceptions import AuthenticationError

from cluster import ray_private
from cluster.proxies import go_direct

TIMEOUT_SECONDS = 10.0
DASHBOARD_PORT = 8265
_TOKEN_HELP = (
    "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE to the cluster's token "
    "(by default it is read from ~/.ray/auth_token)"
)


class ClusterError(Exception):
    """A cluster cannot be reached or cannot hold what is asked of it; one line.

    Attributes:
        exit_code: 2 where what the user gave is wrong, 1 where work failed.
    """

    exit_code = 1


class AddressError(ClusterError):
    """What the user gave is not the address of a cluster that may be used like this."""

    exit_code = 2


@dataclass(frozen=True)
class JobServer:
    """What answers at a dashboard's URL, and whether it is closed to who has no token."""

    url: str
    needs_token: bool


def check_gcs(address: str) -> None:
    """Raises AddressError unless a Ray cluster of this Ray's version lets us in at `host:port`."""
    _split(address)
    try:
        channel = ray_private.init_grpc_channel(address)
    except AuthenticationError:
        raise AddressError(_no_token(address)) from None
    try:
        stub = ray_private.gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        request = ray_private.gcs_service_pb2.CheckAliveRequest()
        found = stub.CheckAlive(request, timeout=TIMEOUT_SECONDS)
    except AuthenticationError:
        raise AddressError(_no_token(address)) from None
    except grpc.RpcError as error:
        raise AddressError(_grpc_problem(address, error)) from None
    finally:
        channel.close()
    check_ray_version(address, found.ray_version)


def _no_token(address: str) -> str:
    return f"there is no token for the cluster at {address}: {_TOKEN_HELP}"


def _grpc_problem(address: str, error: Any) -> str:
    code, details = error.code(), error.details() or ""
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return f"the cluster at {address} refuses this token: {_TOKEN_HELP}"
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return (
            f"{address} is not the address of a Ray cluster (another service answers): give the "
            "one that `ray start --head` printed, usually with port 6379"
        )
    if "HTTP/2" in details or "http1" in details:
        return (
            f"{address} does not speak Ray's protocol: give the address that `ray start --head` "
            f"printed, usually with port 6379 (`tokenpool submit` takes the dashboard's, "
            f"http://HOST:{DASHBOARD_PORT})"
        )
    return f"no Ray cluster answers at {address}: is it up, and reachable from here?"


def check_ray_version(address: str, version: str) -> None:
    """Raises AddressError if a cluster has another Ray than this process."""
    if version and version != ray.__version__:
        raise AddressError(
            f"the cluster at {address} runs Ray {version} and this is Ray {ray.__version__}: "
            "install the same version on both"
        )


def job_server(address: str) -> JobServer:
    """What answers at a dashboard's address; the token is not tried yet.

    Raises:
        AddressError: nothing does, or something that is no Ray dashboard.
    """
    url = dashboard_url(address)
    go_direct(url)  # so will Ray's own client
    try:
        answer = requests.get(
            f"{url}/api/authentication_mode", timeout=TIMEOUT_SECONDS, allow_redirects=False
        )
        mode = answer.json()["authentication_mode"]
    except requests.exceptions.SSLError as error:
        reason = str(error).splitlines()[0][:200]
        raise AddressError(f"the certificate of {url} cannot be trusted: {reason}") from None
    except requests.exceptions.JSONDecodeError:
        mode = None
    except (requests.exceptions.RequestException, OSError):
        raise AddressError(
            f"nothing answers at {url}: is the cluster up, and its dashboard reachable from here?"
        ) from None
    except (KeyError, TypeError):
        mode = None
    if mode is None:
        raise AddressError(
            f"{url} is not the dashboard of a Ray cluster: give http://HOST:{DASHBOARD_PORT}, as "
            "`ray start --head` printed it"
        )
    return JobServer(url, mode != "disabled")


def dashboard_url(address: str) -> str:
    """An address as the URL of a dashboard: `HOST`, `HOST:PORT` or with http:// or https://.

    Raises:
        AddressError: if it is none, or holds a name or password.
    """
    text = address if "://" in address else f"http://{address}"
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.username or parts.password:
        raise AddressError(
            "the address holds a name or password, which would be seen in lists of processes: "
            f"leave it out; {_TOKEN_HELP}"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise AddressError(
            f"{address} is not the address of a dashboard: give http://HOST:{DASHBOARD_PORT}"
        )
    netloc = parts.netloc
    if port is None and parts.scheme == "http":
        netloc = f"{parts.netloc}:{DASHBOARD_PORT}"
    return urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", ""))


def _split(address: str) -> tuple[str, int]:
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdigit() or "/" in address:
        hint = (
            "`tokenpool submit` takes the address of a dashboard"
            if address.startswith("http")
            else "a driver must run on a node of the cluster; from outside use `tokenpool submit`"
            if address.startswith("ray://")
            else "for instance 10.0.0.1:6379, or auto on a node of the cluster"
        )
        raise AddressError(f"{address} is not of the form HOST:PORT: {hint}")
    return host, int(port)


def resolve(address: str) -> str:
    """`auto` as the address of the cluster this machine is a node of, or this job runs in.

    Raises:
        AddressError: if this machine is in none.
    """
    if address != "auto":
        return address
    found = os.environ.get("RAY_ADDRESS")
    if not found:
        with suppress(ConnectionError):
            found = ray_private.get_ray_address_from_environment("auto", None)
    if not found or found == "auto":
        raise AddressError("this machine is no node of a Ray cluster: give --address HOST:PORT")
    return found
