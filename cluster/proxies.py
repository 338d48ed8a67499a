"""Which hosts are asked directly, whatever proxy the environment names.

A proxy stands between a company and the internet. It cannot reach this machine's loopback, and
usually not the nodes of a cluster either; yet every HTTP client here (requests, urllib, aiohttp,
curl within the object stores) sends it all that `NO_PROXY` does not name. So the names are put
there, for this process and those it starts. Proxies stay in force for all other hosts.
"""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

from cluster.security.doors import is_loopback

# As the clients compare them: by text, some by network too. IPv6 stands without brackets.
LOOPBACK = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1")
_ALL = "*"


def go_direct(*addresses: str) -> None:
    """Takes loopback and the hosts of a cluster's addresses out of the proxies' reach."""
    value = direct_hosts(*addresses)
    # Some clients read one spelling and some the other.
    os.environ |= {"NO_PROXY": value, "no_proxy": value}


def go_direct_if_here(address: str) -> None:
    """`go_direct`, with an address of this machine; another one keeps the proxy it has."""
    host = host_of(address)
    if not getproxies_environment():
        return  # and no name need be looked up
    if host and (host in ("0.0.0.0", "::", socket.gethostname().lower()) or is_loopback(host)):
        go_direct(address)


def direct_hosts(*addresses: str) -> str:
    """The value of `NO_PROXY`: what it is, with loopback and the addresses' hosts."""
    given = [text for name, text in os.environ.items() if name.lower() == "no_proxy" and text]
    if _ALL in given:  # nothing goes through a proxy, and with names beside it it means nothing
        return _ALL
    names = [name.strip() for text in given for name in text.split(",")]
    names += [*LOOPBACK, *map(host_of, addresses)]
    return ",".join(dict.fromkeys(filter(None, names)))


def for_workers(*addresses: str) -> dict[str, str]:
    """Variables that make processes on other nodes do as `go_direct` does.

    They go into a runtime environment, where Ray puts a node's own value in the place of
    `${NO_PROXY}`, and sets the upper spelling before the lower one.
    """
    value = direct_hosts(*addresses)
    if value == _ALL:
        return {"NO_PROXY": _ALL, "no_proxy": _ALL}
    return {"NO_PROXY": f"${{NO_PROXY}},{value}", "no_proxy": "${NO_PROXY}"}


def host_of(address: str) -> str:
    """The host that an address names, without brackets; empty if it names none."""
    try:
        return urlsplit(address if "://" in address else f"//{address}").hostname or ""
    except ValueError:
        return ""
