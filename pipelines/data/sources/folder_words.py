"""Folders and tables as messages name them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from pipelines.data.names import printable
from pipelines.data.sources.folder_tree import Folder


def shown(folder: Folder) -> str:
    """A folder as it is named to the user."""
    return f"{printable(folder.path)}/" if folder.path else "./"


def argument(folder: Folder) -> str:
    """A folder as an option names it."""
    return shlex.quote(printable(folder.path) or ".")


def joined(texts: Iterable[str]) -> str:
    """The first three of them."""
    found = list(texts)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more


def labels_option(tables: Sequence[str]) -> str:
    """How to name a table of labels that lies there, or some table."""
    return f"--labels {shlex.quote(tables[0]) if len(tables) == 1 else 'FILE.csv'}"
