"""One finding of `tokenpool doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
