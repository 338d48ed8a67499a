"""Lists of very many files, in columns: as Python objects a million would take half a gigabyte."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from typing import Generic, TypeVar, overload

Item = TypeVar("Item")

File = tuple[str, int, int]
"""(name or path, bytes, time of change) of a file; of one in a tar (path, offset, bytes)."""

Labelled = tuple[str, int, File]
"""(split, label, file with its path relative to the root)."""


class MadeWhenAsked(Sequence[Item], Generic[Item]):
    """A sequence whose items are made when they are asked for."""

    def _item(self, index: int) -> Item:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self._item(i) for i in range(*index.indices(len(self)))]
        return self._item(range(len(self))[index])


class Files(MadeWhenAsked[File]):
    """Names with two numbers each, in the order in which they were put in; names of any bytes."""

    def __init__(self) -> None:
        self._names = bytearray()
        self._ends, self._first, self.last = array("q"), array("q"), array("q")

    def append(self, file: File) -> None:
        """Put one at the end."""
        name, first, last = file
        self._names += os.fsencode(name)
        self._ends.append(len(self._names))
        self._first.append(first)
        self.last.append(last)

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, index: int) -> str:
        """Of the one at a place from the front."""
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(bytes(self._names[start : self._ends[index]]))

    def _item(self, index: int) -> File:
        return self.name(index), self._first[index], self.last[index]


class LabelledFiles(MadeWhenAsked[Labelled]):
    """Files with their splits and labels."""

    def __init__(self) -> None:
        self._files = Files()
        self._splits: list[str] = []  # each once
        self._codes, self._labels = array("b"), array("i")

    def append(self, item: Labelled) -> None:
        """Put a file at the end."""
        split, label, file = item
        if split not in self._splits:
            self._splits.append(split)
        self._codes.append(self._splits.index(split))
        self._labels.append(label)
        self._files.append(file)

    def __len__(self) -> int:
        return len(self._files)

    def _item(self, index: int) -> Labelled:
        return self._splits[self._codes[index]], self._labels[index], self._files[index]
