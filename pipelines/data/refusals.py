"""Refused images: listed in full in a file, and grouped by reason for people to read."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path

from pipelines.data.manifest import REJECTED_NAME, Group
from pipelines.data.names import printable, storable
from pipelines.storage.durable import write_durably

Refusal = tuple[str, str]
"""(name of an image or class, reason)."""

_OPTION = re.compile(r"--[a-z][a-z-]*(?: [A-Z]+\b)?")
# What the reasons of one kind have in common, and the option that takes them, where there is one.
# Other reasons are of one kind up to the first sign; an option that they name themselves counts.
_KINDS = (
    (re.compile(r"duplicate of .* in (\w+)$", re.DOTALL), r"copies of images in \1", ""),
    (re.compile(r"same picture as .*", re.DOTALL), "the same picture in two classes", ""),
    (re.compile(r"decompression bomb.*"), "too many pixels", "--max-pixels N"),
    (re.compile(r"label .* is out of range.*"), "labels out of range", ""),
    (re.compile(r"class .* has no images in (\w+)$", re.DOTALL), r"classes absent from \1", ""),
    (re.compile(r"cannot be read: (.*)"), r"cannot be read, \1", ""),
)
_SHOWN = 8


def group_refusals(refused: Iterable[Refusal]) -> list[Group]:
    """Refusals by kind, the most frequent first; of each the first name and its reason."""
    groups: dict[str, Group] = {}
    for name, reason in refused:
        kind, option = _kind(reason)
        if kind not in groups:
            groups[kind] = Group(
                reason=printable(kind),
                count=0,
                unit="classes" if kind.startswith("classes ") else "images",
                first=storable(name),
                option=option,
                example=storable(reason),
            )
        groups[kind].count += 1
    return sorted(groups.values(), key=lambda group: -group.count)


def _kind(reason: str) -> tuple[str, str]:
    named = _OPTION.search(reason)
    for pattern, kind, option in _KINDS:
        if (found := pattern.fullmatch(reason)) is not None:
            return found.expand(kind), named[0] if named else option
    return re.split(r"[:;(,]", reason)[0].strip(), named[0] if named else ""


def in_words(groups: list[Group]) -> str:
    """All groups in one line."""
    parts = []
    for group in groups[:_SHOWN]:
        many = f"{group.count:,} like " if group.count > 1 else ""
        option = f" ({group.option})" if group.option and group.option not in group.example else ""
        parts.append(f"{many}{printable(group.first)}: {printable(group.example)}{option}")
    rest = sum(group.count for group in groups[_SHOWN:])
    return "; ".join(parts) + (f"; {rest:,} for other reasons" if rest else "")


def write_rejected(folder: Path, refused: list[Refusal]) -> Path:
    """List refusals in `rejected.csv`; gives its path."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["source_name", "reason"])
    writer.writerows((storable(name), storable(reason)) for name, reason in refused)
    path = folder / REJECTED_NAME
    write_durably(path, [text.getvalue().encode()])
    return path
