"""Models of timm's and of hubs, by name: fetched, or read from what was fetched before."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import timm
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from pipelines.errors import UserError

_HUBS = ("hf-hub:", "hf_hub:", "local-dir:")
_SECONDS = 5.0


def is_named(source: str) -> bool:
    """Whether a source is a model of timm's or of a hub, not a path."""
    return source.startswith(_HUBS) or (timm.is_model(source) and not Path(source).exists())


def is_sharded(folder: Path) -> bool:
    """Whether a folder holds its weights in several files and a list of them."""
    return any(folder.glob("*.index.json"))


def pretrained(name: str) -> Any:
    """A timm model with the weights timm knows for it, or those of a hub or a local folder.

    Raises:
        UserError: it has none, or they cannot be fetched.
    """
    if name.startswith("local-dir:") and is_sharded(Path(name.removeprefix("local-dir:"))):
        raise UserError(
            f"{name} holds its weights in shards, of which timm would take one: give the folder "
            "itself, without local-dir:"
        )
    unreachable = None
    try:
        if name.startswith("local-dir:"):
            return timm.create_model(name, pretrained=True)
        with _cached_if_unreachable() as unreachable:
            return timm.create_model(name, pretrained=True)
    except Exception as error:  # timm raises its own, the hub's and the network's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        if unreachable and isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
            reason = f"{unreachable} cannot be reached and they were not fetched before"
        raise UserError(
            f"no weights for {name}: {reason}: give a file of them, or fetch them where there is "
            "a network",
            exit_code=1,
        ) from None


@contextmanager
def _cached_if_unreachable() -> Iterator[str | None]:
    """Lets the hub's client look into its cache alone where there is no network.

    By itself it asks six times over half a minute, for each file, with a warning each time. Gives
    the host that does not answer, if so.
    """
    host = None if constants.is_offline_mode() else _unreachable(constants.ENDPOINT)
    if host is None:
        yield None
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield host
    finally:
        constants.HF_HUB_OFFLINE = False


def _unreachable(url: str) -> str | None:
    """The host, or the proxy before it, that takes no connection; None where one does."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(host):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_SECONDS).close()
    except OSError:
        return parts.hostname
    return None
