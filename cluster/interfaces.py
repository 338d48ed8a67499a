"""Which of a machine's network interfaces the workers of a job talk over."""

from __future__ import annotations

import os

import psutil


def interface_of(address: str) -> str | None:
    """The name of this machine's network interface that has an IP address; None if none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.split("%")[0] == address for entry in addresses):
            return name
    return None


def use_interface_of(address: str, *, on_one_node: bool = False) -> None:
    """Makes gloo and NCCL talk over the interface that carries the node's Ray address.

    Left alone, gloo takes the one of the host's name, often loopback, and fails between hosts.
    Where all who talk are on one node it need not listen beyond loopback. What the user has set
    stays.
    """
    name = interface_of(address)
    loopback = interface_of("127.0.0.1") if on_one_node else None
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    if name is None:
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    if not address.startswith("127."):
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # "=": not a prefix
