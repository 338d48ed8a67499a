"""Lists of very many files, in columns: as Python objects a million would take half a gigabyte."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from typing import Generic, TypeVar, overload

Item = TypeVar("Item")

File = tuple[str, int, int]
"""(name or path, bytes, time of change) of a file."""

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
    """Files in the order in which they were put in; names may be of any bytes."""

    def __init__(self) -> None:
        self._names = bytearray()
        self._ends, self._sizes, self._times = array("q"), array("q"), array("q")

    def append(self, file: File) -> None:
        """Put a file at the end."""
        name, size, modified = file
        self._names += os.fsencode(name)
        self._ends.append(len(self._names))
        self._sizes.append(size)
        self._times.append(modified)

    def __len__(self) -> int:
        return len(self._ends)

    def _item(self, index: int) -> File:
        start = self._ends[index - 1] if index else 0
        name = os.fsdecode(bytes(self._names[start : self._ends[index]]))
        return name, self._sizes[index], self._times[index]


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
