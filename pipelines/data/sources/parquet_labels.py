"""One list of classes out of the labels of many Parquet files: names decide, not numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.data.class_choice import chosen_classes
from pipelines.data.sources.parquet_columns import LabelKind
from pipelines.errors import UserError

LARGEST_UNNAMED = 100_000
"""Numbers beyond are taken for something else than classes, unless `--classes` says how many."""

_BOOL_NAMES = {0: "False", 1: "True"}


@dataclass(frozen=True)
class FileLabels:
    """What the labels of one file say by themselves.

    `names` maps numbers to class names, where the file tells them; `texts` are the values of a
    column of text; `largest` is the largest number of a column without names, -1 for none.
    """

    file: str
    kind: LabelKind
    names: dict[int, str] | None = None
    texts: frozenset[str] = frozenset()
    largest: int = -1

    @property
    def declared(self) -> list[str] | None:
        """Class names in the order of their numbers, or None where the file tells none."""
        names = self.names or (_BOOL_NAMES if self.kind == "bool" else None)
        return list(names.values()) if names else None


@dataclass(frozen=True)
class LabelTable:
    """What each label of a file means: `classes` gives the class of the chosen labels.

    Labels are the numbers 0 to `count` - 1, or texts where `count` is None. Without `classes` a
    number is its class.
    """

    count: int | None
    classes: Mapping[Any, int] | None = None

    def of(self, value: Any) -> tuple[int | None, str]:
        """(class, why there is none) of a label; (None, "") if its class was not chosen."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None, "no label"
        if self.count is None:
            return self._chosen(value) if isinstance(value, str) and value else (None, "no label")
        number = whole(value)
        if number is None:
            return None, f"label {value} is not a whole number"
        if number == -1:
            return None, "label -1, which marks images without a label"
        if not 0 <= number < self.count:
            return None, f"label {number} is out of range 0..{self.count - 1}"
        return self._chosen(number)

    def _chosen(self, label: int | str) -> tuple[int | None, str]:
        if self.classes is None and isinstance(label, int):
            return label, ""
        return (self.classes or {}).get(label), ""


def join_labels(
    source: str,
    files: Sequence[FileLabels],
    wanted: int | list[str] | None,
    *,
    share_names: bool = False,
) -> tuple[list[str], list[LabelTable], list[str]]:
    """One list of classes for all files, and what the labels of each file mean in it.

    Names that stand in another order, or are only some of the names of another file, are matched
    by name. Two classes of one name stay two.

    Args:
        source: for messages.
        files: those with rows, training files first.
        wanted: the first so many or the named classes; the count of classes without names.
        share_names: files without names number their classes as those with names do.

    Returns:
        (classes, a table for each file, sentences about what was matched).

    Raises:
        UserError: files contradict each other, or wanted classes are not there.
    """
    named = [file for file in files if file.declared or file.kind == "text"]
    bare = [file for file in files if not file.declared and file.kind != "text"]
    if not named:
        return _unnamed(source, bare, wanted)
    names, giver = _all_names(source, named)
    if bare:
        _check_bare(source, bare, named, share_names)
    chosen = chosen_classes(names, wanted, source)
    place = {number: at for at, number in enumerate(chosen)}
    notes: list[str] = []
    tables: list[LabelTable] = []
    for file in files:
        if file.kind == "text":
            chosen_texts = {text: place[at] for at, text in enumerate(names) if at in place}
            tables.append(LabelTable(None, chosen_texts))
            continue
        own = file.declared or names
        if own != names:
            notes.append(f"{file.file} numbers its classes otherwise: matched by name to {giver}")
        positions = range(len(names)) if own == names else map(names.index, own)
        numbers = [place.get(number) for number in positions]
        if numbers == list(range(len(names))):
            tables.append(LabelTable(len(own)))
        else:
            kept = {label: at for label, at in enumerate(numbers) if at is not None}
            tables.append(LabelTable(len(own), kept))
    return [names[number] for number in chosen], tables, _shortened(notes)


def _unnamed(
    source: str, files: Sequence[FileLabels], wanted: int | list[str] | None
) -> tuple[list[str], list[LabelTable], list[str]]:
    if isinstance(wanted, list):
        raise UserError(f"--classes: {source} carries no class names, give a number")
    largest = max(files, key=lambda file: file.largest, default=None)
    if wanted is None and largest is not None and largest.largest > LARGEST_UNNAMED:
        raise UserError(
            f"{largest.file} has labels up to {largest.largest} and no class names: name the "
            "column of the classes with --label-column, or say how many there are with --classes"
        )
    count = wanted if wanted is not None else largest.largest + 1 if largest else 0
    if count < 1:
        raise UserError(f"{source} has no labels of 0 or more")
    return [str(number) for number in range(count)], [LabelTable(count)] * len(files), []


def _all_names(source: str, named: Sequence[FileLabels]) -> tuple[list[str], str]:
    """The names of all classes in order, and the file that gives the order.

    That is the longest list that a file declares, of the first file that does; without any, all
    texts in the order of their characters.
    """
    declaring = [file for file in named if file.declared]
    texts = [file for file in named if file.kind == "text"]
    if not declaring:
        names = sorted(set().union(*(file.texts for file in texts)))
        if not names:
            raise UserError(f"{source} has no labels")
        return names, ""
    giver = max(declaring, key=lambda file: len(file.declared or ()))  # the first of equal ones
    names = giver.declared or []
    for file in declaring:
        _check_subset(source, file, file.declared or [], giver, names)
    for file in texts:
        _check_subset(source, file, sorted(file.texts), giver, names)
    return names, giver.file


def _check_subset(
    source: str, file: FileLabels, own: list[str], giver: FileLabels, names: list[str]
) -> None:
    """Every name of a file must be one of `names`, beyond doubt."""
    if own == names:
        return
    counts, own_counts = Counter(names), Counter(own)
    for name in own:
        if name not in counts:
            raise UserError(
                f"{source}: {file.file} has a class {name!r}, {giver.file} has none of that name: "
                "they are no shards of one data set, or the names must be made the same"
            )
        if counts[name] > 1 or own_counts[name] > 1:
            raise UserError(
                f"{source}: several classes are called {name!r} in {giver.file} or {file.file}, "
                "and the two number their classes otherwise: give them different names"
            )


def _check_bare(
    source: str, bare: Sequence[FileLabels], named: Sequence[FileLabels], share_names: bool
) -> None:
    """Numbers without names go with names only where every file numbers alike, and it is said.

    Where the names are the numbers themselves (`datasets` calls classes so) there is no doubt.
    """
    lists = {tuple(file.declared or ()) for file in named}
    alike = len(lists) == 1 and () not in lists
    if alike and all(name == str(number) for number, name in enumerate(next(iter(lists)))):
        return
    if share_names and alike:
        return
    where = f"{source}: {named[0].file} has class names and {bare[0].file} bare numbers"
    if () in lists:
        raise UserError(f"{where}: write the names, as text, into both")
    if share_names:
        raise UserError(f"{where}, and the files with names do not all number alike")
    raise UserError(
        f"{where}: if these number the same classes in the same order, add --share-names; else "
        "write the names into both"
    )


def whole(value: Any) -> int | None:
    """A number as int, None where it is no whole one."""
    try:
        number = int(value)
    except (ValueError, OverflowError, TypeError):
        return None
    return number if number == value else None


def _shortened(notes: list[str]) -> list[str]:
    if len(notes) <= 3:
        return notes
    return [*notes[:3], f"{len(notes) - 3} more files number their classes otherwise, likewise"]
