"""How an MLflow server treats strangers: asked as one, and with the passwords everybody knows."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from cluster.security.doors import Door, plain_opener, try_http
from cluster.security.redact import basic_auth

# MLflow's own default until 3.x, an earlier one, and what guides print.
WELL_KNOWN = (("admin", "password1234"), ("admin", "password"), ("admin", "admin"))
_READ = "/api/2.0/mlflow/experiments/search?max_results=1"
_PATIENCE = 5.0


def base_url(url: str) -> str:
    """A server's address without a name, password, query or slash at its end."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def try_server(url: str, timeout: float = _PATIENCE) -> Door:
    """Reads the list of experiments without credentials."""
    return try_http(base_url(url) + _READ, timeout)


def well_known_password(url: str, timeout: float = _PATIENCE) -> str | None:
    """The well-known name and password a server accepts, None if none.

    Only for a server of one's own: the one that `MLFLOW_TRACKING_URI` names, or that listens here.
    """
    for user, password in WELL_KNOWN:
        request = urllib.request.Request(
            base_url(url) + _READ, headers={"Authorization": f"Basic {basic_auth(user, password)}"}
        )
        try:
            with plain_opener().open(request, timeout=timeout) as answer:
                if answer.status == 200:
                    return f"{user} / {password}"
        except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError):
            continue
    return None


def checks_host(url: str, timeout: float = _PATIENCE) -> bool | None:
    """Whether a server refuses requests that are meant for another host; None if it is silent.

    One that does not can be read and changed by any web page that a browser on this machine
    opens (DNS rebinding).
    """
    parts = urlsplit(base_url(url))
    connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = connect(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.putrequest("GET", parts.path + _READ, skip_host=True)
        connection.putheader("Host", "rebinding.invalid")
        connection.endheaders()
        return connection.getresponse().status not in (200, 401)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
