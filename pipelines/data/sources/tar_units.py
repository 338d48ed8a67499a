"""Images in tar files as columns, not objects, and the units that are cut from them when asked for.

A million images as Python objects would be the better part of a gigabyte, in the one process that
has to hold them all.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.data.shard_rows import in_chunks
from pipelines.data.sources.file_list import Files, MadeWhenAsked
from pipelines.data.sources.source import Sample
from pipelines.data.sources.tar_members import Member

_SMALLEST_UNIT = 32
_UNIT_BYTES = 64 << 20  # a worker holds a unit's images at once
_DROPPED = -1  # the group of what a later member replaces
_LARGEST_IMAGE = 1 << 31  # of a sample in a beton


@dataclass(frozen=True)
class TarUnit:
    """Some images of one tar: (label, name, offset, bytes).

    `where` is what the tar is called in names of samples. `stamp` changes with the tar, so that a
    run that is taken up again reads anew what was replaced meanwhile.
    """

    tar: str
    where: str
    split: str
    entries: tuple[tuple[int, str, int, int], ...]
    stamp: str = ""

    @property
    def num_samples(self) -> int:
        return len(self.entries)

    def read(self) -> Iterator[Sample]:
        try:
            descriptor = os.open(self.tar, os.O_RDONLY)
        except OSError as problem:
            for label, name, _, _ in self.entries:
                error = f"cannot be read: {problem.strerror}"
                yield Sample(f"{self.where}:{name}", self.split, label, b"", error)
            return
        try:
            for label, name, offset, size in self.entries:
                data, error = _read(descriptor, offset, size)
                yield Sample(f"{self.where}:{name}", self.split, label, data, error)
        finally:
            os.close(descriptor)


def _read(descriptor: int, offset: int, size: int) -> tuple[bytes, str]:
    if size > _LARGEST_IMAGE:
        return b"", f"{size:,} bytes are no image"
    try:
        data = os.pread(descriptor, size, offset)
    except OSError as problem:
        return b"", f"cannot be read: {problem.strerror}"
    return (data, "") if len(data) == size else (b"", "cannot be read: the tar became shorter")


class TarImages:
    """N images of several tars, in the order they are to be read; `group` is the caller's."""

    def __init__(self) -> None:
        self._members = Files()
        self._tars, self._groups = array("i"), array("i")
        self._first: dict[int, int] = {}  # the first image of each group

    def add(self, tar: int, group: int, member: Member) -> None:
        """Put an image of the tar of a number at the end; its group decides its split and label."""
        self._first.setdefault(group, len(self._groups))
        self._members.append(member)
        self._tars.append(tar)
        self._groups.append(group)

    def __len__(self) -> int:
        return len(self._groups)

    def drop_older(self, start: int) -> list[str]:
        """Drop images from `start` on that a later one of their name replaces, as unpacking does.

        Gives their paths.
        """
        rows = range(start, len(self))
        hashes = np.fromiter((hash(self._members.name(row)) for row in rows), np.int64, len(rows))
        order = np.argsort(hashes, kind="stable")
        again = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        pairs = [(start + int(order[i]), start + int(order[i + 1])) for i in again]
        name = self._members.name
        older = [row for row, newer in pairs if name(row) == name(newer)]
        for row in older:
            self._groups[row] = _DROPPED
        return [name(row) for row in older]

    def counts(self, groups: int) -> list[int]:
        """How many images each of so many groups has."""
        found = np.frombuffer(self._groups, np.int32)
        return np.bincount(found[found != _DROPPED], minlength=groups).tolist()

    def first(self, group: int) -> str:
        """The path of the first image of a group."""
        return self._members.name(self._first[group])

    def units(
        self,
        tars: Sequence[tuple[Path, str, str]],
        meanings: Sequence[tuple[str, int]],
        largest: int,
    ) -> TarUnits:
        """Cut into units, of so many images at most, those whose label is not negative.

        `tars` have (path, name for reports, stamp), `meanings` (split, label) of each group.
        """
        groups = np.frombuffer(self._groups, np.int32)
        labels = np.array([label for _, label in meanings], np.int32)
        taken = np.flatnonzero(groups != _DROPPED)
        taken = taken[labels[groups[taken]] >= 0]
        # Train before val, as folders have it; within a split as the tars have it.
        ranks = np.array([split == "val" for split, _ in meanings], np.int8)
        order = taken[np.argsort(ranks[groups[taken]], kind="stable")]
        sizes = np.frombuffer(self._members.last, np.int64)[order]
        boundary = np.frombuffer(self._tars, np.int32)[order] * 2 + ranks[groups[order]]
        bounds = _bounds(boundary, sizes, largest)
        return TarUnits(self, tars, meanings, order, bounds)

    def entry(self, row: int) -> tuple[int, int, str, int, int]:
        """(tar, group, name, offset, bytes) of one image."""
        return self._tars[row], self._groups[row], *self._members[row]


def _bounds(tars: np.ndarray, sizes: np.ndarray, largest: int) -> np.ndarray:
    """[units + 1] where units begin: at another tar, and where images or bytes are enough.

    The last ones are smaller, so that no process has a large one left while others are idle.
    """
    begins = [0]
    count = total = 0
    before = int(tars[0]) if len(tars) else 0
    for row, (tar, size) in enumerate(in_chunks(tars, sizes)):
        most = min(largest, max(_SMALLEST_UNIT, (len(tars) - begins[-1]) // 8))
        if count and (tar != before or count == most or total + size > _UNIT_BYTES):
            begins.append(row)
            count = total = 0
        before, count, total = tar, count + 1, total + size
    return np.array([*begins, len(tars)] if len(tars) else [0], np.int64)


@dataclass(eq=False)
class TarUnits(MadeWhenAsked[TarUnit]):
    """Units that are made when they are asked for."""

    images: TarImages
    tars: Sequence[tuple[Path, str, str]]
    meanings: Sequence[tuple[str, int]]
    order: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def _item(self, index: int) -> TarUnit:
        rows = self.order[self.bounds[index] : self.bounds[index + 1]].tolist()
        found = [self.images.entry(row) for row in rows]
        path, where, stamp = self.tars[found[0][0]]
        entries = tuple(
            (self.meanings[group][1], name, offset, size) for _, group, name, offset, size in found
        )
        return TarUnit(str(path), where, self.meanings[found[0][1]][0], entries, stamp)
