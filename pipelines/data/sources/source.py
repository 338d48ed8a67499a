"""What a source is: classes, and picklable units that yield samples in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

Mode = Literal["jpg", "raw", "proportion"]


@dataclass(frozen=True)
class Sample:
    """One image as the source has it.

    `data` is the file's bytes, or pixels [H, W, 3] uint8. `split` is "train" or "val", or ""
    where the source has no splits and the seed decides. `error` is set, and `data` empty, where
    the source could not be read.
    """

    name: str
    split: str
    label: int
    data: bytes | np.ndarray
    error: str = ""


class Unit(Protocol):
    """Some hundred samples that one process reads in one go; picklable."""

    @property
    def num_samples(self) -> int:
        """How many samples `read` yields."""

    def read(self) -> Iterator[Sample]:
        """Yield the samples, the same ones in the same order every time."""


@dataclass(frozen=True)
class LeftOut:
    """Things of a source that are not taken, and are no fault: they are counted and said.

    `reason` stands behind a count ("hidden", "of the test split"); `first` is one of them.
    """

    reason: str
    count: int
    first: str = ""
    unit: str = "files"


@dataclass(frozen=True)
class Source:
    """A listed source.

    `origins` says of each split ("train", "val", or "" where the seed decides) which folders or
    files it comes from, as a person would name them: `["Train/"]`. `problems` are (name, reason)
    pairs found while listing that stop the work, such as a class missing in val; `left_out` is what
    is passed over and said; `notes` are sentences about what was taken for what.
    """

    name: str
    classes: list[str]
    units: Sequence[Unit]
    default_mode: Mode = "jpg"
    default_minival: float = 0.05
    default_val: float = 0.1
    problems: list[tuple[str, str]] = field(default_factory=list)
    origins: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Tally:
    """Counts by reason what is passed over; called with (name, reason) of one thing or many."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def __call__(self, name: str, reason: str, many: int = 1) -> None:
        count, first = self._found.get(reason, (0, name))
        self._found[reason] = count + many, first

    def told(self) -> list[LeftOut]:
        """What was counted, in the order of the reasons' first occurrence."""
        return [LeftOut(reason, count, first) for reason, (count, first) in self._found.items()]
