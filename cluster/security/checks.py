"""One finding of `tokenpool doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_SHOWN = 4
Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One finding; `remedy` is empty when all is well.

    Attributes:
        is_door: Whether it says that something stands open to the network, which may be meant.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""
    is_door: bool = False


def some(names: list[str]) -> str:
    """The first few of some names."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
