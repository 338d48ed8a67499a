"""A ledger in an object store: numbered objects that are never changed, and the file they make.

Objects cannot be appended to. So each batch of events is an object of its own, and the ledger is
what they give one after the other. An object's name says which numbers it stands for and in which
generation of drivers it was written:

    ledger/000000017-000000017-000002.jsonl     number 17, by the second driver
    ledger/000000001-000000300-000003.jsonl     the first 300, put together by an older version

A driver begins where the ones before it ended. One that was taken for dead and is not may still
write: what it writes from there on has the numbers of its successor's, an older generation, and
does not count. Nothing is overwritten or deleted, so nothing that counts is lost.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError
from pipelines.storage.durable import write_atomic, write_text
from pipelines.storage.store import ObjectStore

FOLDER = "ledger"
_NAME = re.compile(rf"{FOLDER}/(\d{{9}})-(\d{{9}})-(\d{{6}})\.jsonl$")
_INDEX_NAME = ".ledger-index.json"


@dataclass(frozen=True, order=True)
class Segment:
    """One object of a ledger.

    Attributes:
        first: the number of its first batch, from 1.
        last: of its last one.
        generation: of the driver that wrote it.
    """

    first: int
    last: int
    generation: int

    @property
    def name(self) -> str:
        """Of the object, below the search's folder."""
        return f"{FOLDER}/{self.first:09d}-{self.last:09d}-{self.generation:06d}.jsonl"


def segments_in(store: ObjectStore) -> list[Segment]:
    """All segments under a search's folder, also those that do not count."""
    found = (_NAME.match(entry.name) for entry in store.entries(FOLDER))
    return [Segment(*map(int, match.groups())) for match in found if match]


def chain(segments: Sequence[Segment]) -> list[Segment]:
    """The segments that make the ledger, in order.

    Left out is what a driver wrote that had been replaced by then, and what was put together, as
    older versions did.

    Raises:
        ValueError: one in the middle is missing.
    """
    begins: dict[int, int] = {}  # generation → its first number
    for segment in segments:
        before = begins.get(segment.generation, segment.first)
        begins[segment.generation] = min(before, segment.first)
    valid = [
        segment
        for segment in segments
        if all(segment.last < first for g, first in begins.items() if g > segment.generation)
    ]
    found: list[Segment] = []
    reached = 0
    # Of those that begin at the same number the one that holds most comes first.
    for segment in sorted(valid, key=lambda s: (s.first, -s.last, -s.generation)):
        if segment.last <= reached:
            continue
        if segment.first != reached + 1:
            raise ValueError(f"batch {reached + 1} is missing")
        found.append(segment)
        reached = segment.last
    return found


def listed(store: ObjectStore) -> list[Segment]:
    """The chain in a store.

    Args:
        store: the search's folder.

    Raises:
        UserError: one is missing.
    """
    try:
        return chain(segments_in(store))
    except ValueError as error:
        raise _damaged(store, str(error)) from None


def _damaged(store: ObjectStore, problem: str) -> UserError:
    return UserError(
        f"the ledger at {store.address} is damaged ({problem}): bring the object back, or start "
        "the search again under another name",
        exit_code=1,
    )


def pull(store: ObjectStore, path: Path) -> list[Segment]:
    """Makes a file of this machine the ledger that is in a store; only what is new is fetched.

    Nobody else may write the file meanwhile.

    Args:
        store: the search's folder.
        path: of the file.

    Returns:
        The chain.

    Raises:
        UserError: the store does not answer, or the ledger in it is damaged.
    """
    segments = listed(store)
    known, size = _known(path, segments)
    new = segments[known:]
    contents = store.read_all([segment.name for segment in new])
    if None in contents:
        raise _damaged(store, f"{new[contents.index(None)].name} is gone")
    if new or not path.exists() or path.stat().st_size != size:
        _extend(path, size, b"".join(filter(None, contents)))
        _note(path, segments)
    return segments


def _known(path: Path, segments: list[Segment]) -> tuple[int, int]:
    """How many of the segments are in the file already, and how many bytes they are."""
    try:
        index = json.loads(path.with_name(_INDEX_NAME).read_text())
        last, size = Segment(*index["last"]), int(index["size"])
        if path.stat().st_size < size:
            return 0, 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0
    return (segments.index(last) + 1, size) if last in segments else (0, 0)


def _extend(path: Path, size: int, content: bytes) -> None:
    """Appends to a file after it is cut to a size; made anew where that is 0."""
    if not size:
        write_atomic(path, lambda aside: aside.write_bytes(content))
        return
    with path.open("r+b") as file:
        file.truncate(size)
        file.seek(size)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _note(path: Path, segments: list[Segment]) -> None:
    index = path.with_name(_INDEX_NAME)
    if not segments:
        index.unlink(missing_ok=True)
        return
    last = segments[-1]
    note = {"last": [last.first, last.last, last.generation], "size": path.stat().st_size}
    write_text(index, json.dumps(note))
