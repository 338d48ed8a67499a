"""Every pooling method with the options that make sense for it, as text."""

from __future__ import annotations

import tokenpool as tp
from tokenpool.methods import method
from tokenpool.methods.method_text import format_method, parse_method
from tokenpool.options import PoolOptions

__all__ = ["LEADING", "REFERENCES", "all_variants"]

_AS_TOME = "position=attention, proportional_attention=true"
_BY_KEYS = f"start=matching, features=keys, {_AS_TOME}, iterations=1"
_CLUSTERS = ("kmeans", "kmedoids", "wkmeans", "wkmedoids")

REFERENCES = ("tome", "tome(position=attention)")
"""What others are held against: ToMe pooled after the block, as here, and as published."""

_LEADING = (
    "leader",
    "tome(position=attention)",
    "pitome",
    "atc",
    "atm",
    f"kmeans({_BY_KEYS})",
    f"wkmedoids({_BY_KEYS})",
    f"agglomerative(features=keys, {_AS_TOME})",
    "wkmedoids(start=matching)",
    "wkmedoids",
)


def all_variants() -> list[str]:
    """Each method plain, and pooled as ToMe pools; the paper's four by better starts as well."""
    found: list[str] = []
    for name in tp.METHODS:
        found.append(name)
        strategy = method(name)
        if strategy.merges and strategy.position(PoolOptions()) != "attention":
            found.append(f"{name}({_AS_TOME})")
        if name in _CLUSTERS:
            found += [f"{name}(start=matching)", f"{name}({_BY_KEYS})"]
        elif name in ("dpc", "agglomerative"):
            found.append(f"{name}(features=keys, representative=mean, {_AS_TOME})")
    return _known([*_LEADING, *found, *REFERENCES])


def _known(texts: list[str] | tuple[str, ...]) -> list[str]:
    """Those whose method is there, each once and in its one spelling."""
    there = [text for text in texts if text.partition("(")[0] in tp.METHODS]
    return list(dict.fromkeys(format_method(*parse_method(text)) for text in there))


LEADING = _known(_LEADING)
"""Those whose schedules are worth looking at where pictures are large."""
