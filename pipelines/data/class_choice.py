"""Which classes a user chose, by count or by name, and what to say of the names of all."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from pipelines.data.names import printable
from pipelines.errors import UserError


def read_classes(text: str | None, names: Sequence[str]) -> int | list[str] | None:
    """What `--classes TEXT` and any number of `--class NAME`, taken as they are, ask for.

    Raises:
        UserError: nothing is named, or a number stands beside names.
    """
    if text is None:
        return list(names) or None
    if not text.strip(" ,"):
        raise UserError("--classes is empty: give a number, names with commas, or --class NAME")
    if text.isascii() and text.isdigit():
        if names:
            raise UserError(f"--classes {text} is a number of classes: leave --class out")
        return int(text)
    return [part.strip() for part in text.split(",") if part.strip()] + list(names)


def chosen_classes(found: Sequence[str], wanted: int | list[str] | None, where: str) -> list[int]:
    """The positions in `found` of the classes to keep, in the order of `found`.

    Args:
        found: all classes; a name may occur more than once, and each of them is meant then.
        wanted: the first so many, or names from `read_classes`, whose commas may be inside names.
        where: the source, for messages.

    Raises:
        UserError: more or other classes wanted than there are, or commas that can be read in
            two ways.
    """
    if wanted is None:
        return list(range(len(found)))
    if isinstance(wanted, int):
        if 1 <= wanted <= len(found):
            return list(range(wanted))
        named = f"; for the class called {wanted} give --class {wanted}"
        raise UserError(
            f"--classes {wanted}: {where} has {len(found)} classes"
            + (named if str(wanted) in found else "")
        )
    keep = set(_joined(wanted, set(found), where))
    return [i for i, name in enumerate(found) if name in keep]


def order_notes(names: Sequence[str]) -> list[str]:
    """What to say of classes: numbers in the order of text, and names that look alike."""
    numbers = [int(name) for name in names if name.isascii() and name.isdigit()]
    if len(numbers) == len(names) and numbers != sorted(numbers) and list(names) == sorted(names):
        return [f"classes are in the order of their names as text: {', '.join(names[:4])}, …"]
    seen: dict[str, str] = {}
    notes = []
    for name in names:  # one system writes it in one way and another in another
        other = seen.setdefault(unicodedata.normalize("NFKC", name).casefold().strip(), name)
        if other != name:
            notes.append(f"classes {other!r} and {name!r} are two, though they look like one")
    return notes


def _joined(parts: list[str], names: set[str], where: str) -> list[str]:
    """Names put together again from what stood between commas."""
    by_key: dict[str, set[str]] = {}
    for name in names:
        by_key.setdefault(_key(name), set()).add(name)
    longest = max((key.count(",") for key in by_key), default=0) + 1
    # readings[i]: up to two ways to read parts[i:], for two are as bad as many
    readings: list[list[list[str]]] = [[] for _ in parts] + [[[]]]
    for start in range(len(parts) - 1, -1, -1):
        for end in range(start + 1, min(start + longest, len(parts)) + 1):
            exact = {parts[start]} & names if end == start + 1 else set()
            heads = exact or by_key.get(_key(",".join(parts[start:end])), set())
            readings[start] += [[head, *rest] for head in sorted(heads) for rest in readings[end]]
        readings[start] = readings[start][:2]
    if len(readings[0]) > 1:
        raise UserError(
            f"--classes: {printable(', '.join(parts))} can be read as {readings[0][0]} or "
            f"{readings[0][1]}: "
            "name each by --class NAME"
        )
    if not readings[0]:
        known = [_key(name) for name in names]
        # The first one that is no part of any name either is the one that was mistyped.
        missing = next(
            (p for p in parts if p not in names and not any(_key(p) in k for k in known)), parts[0]
        )
        raise UserError(f"--classes: {where} has no class {missing!r}")
    return readings[0][0]


def _key(name: str) -> str:
    return ",".join(part.strip() for part in name.split(","))
