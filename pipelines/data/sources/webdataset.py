"""WebDataset shards: tars in which `KEY.jpg` lies beside `KEY.cls` or `KEY.json` with its label.

A key is a path up to the first dot of the file's name, as the format has it; where names hold more
dots (`img.0001.jpg`), the image and the label that share all but the ending belong together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipelines.data.layout import foreign_path
from pipelines.data.sources.folder_tree import IMAGE_SUFFIXES
from pipelines.data.sources.source import Tally
from pipelines.data.sources.tar_members import Member, scan
from pipelines.errors import UserError

LABEL_SUFFIXES = (".cls", ".json")
"""Where a label may stand, the first that is there counts: a number or a name as text, or JSON."""

LABEL_FIELDS = (
    "label", "cls", "class", "label_id", "class_id", "class_idx", "class_index", "class_label",
    "label_name", "class_name",
)  # fmt: skip
"""Fields of `KEY.json` that may have the label: the first, unless `--label-column` names one."""

CLASS_NAME_FILES = ("classes.txt", "classnames.txt", "class_names.txt", "labels.txt")
"""Files beside the shards, or above them up to the source, with a class name a line."""

_LARGEST_LABEL = 1 << 20  # bytes of a .cls or .json
_LOOKED_AT = 64  # members of a tar by which its kind is told

Label = int | str


class Labelled(NamedTuple):
    """An image in a shard and its label: a number, or a name."""

    label: Label
    image: Member


@dataclass
class _Key:
    """What was found so far of one key, by name without ending."""

    images: dict[str, list[Member]] = field(default_factory=dict)
    labels: dict[str, dict[str, Member]] = field(default_factory=dict)
    matched: bool = False


def is_webdataset(path: Path, label_field: str | None) -> bool | None:
    """Whether labels lie beside the first images of a tar; None where it holds nothing to tell by.

    JSON files without a label, beside images in folders, are somebody's notes on class folders.
    """
    first = list(islice(scan(path, "", Tally(), []), _LOOKED_AT))
    images = {_split(member.path)[0] for member in first if _is_image(member)}
    keys = {_key(base) for base in images}
    beside = [m for m in first if _split(m.path)[1] == ".json" and _key(_split(m.path)[0]) in keys]
    if any(_split(member.path)[1] == ".cls" for member in first):
        return True
    if not beside or not any("/" in base for base in images):
        return bool(beside) if images else None
    with path.open("rb", buffering=0) as file:
        shard = _Shard(file, "", label_field, Tally(), [])
        return not isinstance(shard.value(beside[0], ".json"), ValueError)


def read_shard(
    path: Path,
    where: str,
    label_field: str | None,
    leave_out: Tally,
    problems: list[tuple[str, str]],
) -> Iterator[Labelled]:
    """The images of a shard with their labels, in the order they lie in it.

    Args:
        path: a tar.
        where: what it is called in reports.
        label_field: the field of `KEY.json` that has the label; None: see `LABEL_FIELDS`.
        leave_out: counts what is neither image nor label, and what lacks its counterpart.
        problems: gets (name, reason) of images whose label is not there or cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        shard = _Shard(file, where, label_field, leave_out, problems)
        for member in scan(path, where, leave_out, problems):
            yield from shard.take(member)
        yield from shard.finish()


@dataclass
class _Shard:
    file: BinaryIO
    where: str
    label_field: str | None
    leave_out: Tally
    problems: list[tuple[str, str]]
    _key: str = ""
    _base: str = ""
    _current: _Key = field(default_factory=_Key)
    # Members of a key should follow each other; where they do not, they wait here.
    _waiting: dict[str, _Key] = field(default_factory=dict)

    def take(self, member: Member) -> Iterator[Labelled]:
        base, suffix = _split(member.path)
        why = foreign_path(member.path)
        if not why and suffix not in IMAGE_SUFFIXES and suffix not in LABEL_SUFFIXES:
            why = f"neither images nor labels ({suffix or 'no ending'})"
        if why:
            self.leave_out(self._name(member), why)
            return
        key = _key(base)
        if base != self._base:
            yield from self._match(self._current, self._base)
        if key != self._key:
            yield from self._settle()
        self._key, self._base = key, base
        if _is_image(member):
            self._current.images.setdefault(base, []).append(member)
        else:
            self._current.labels.setdefault(base, {})[suffix] = member

    def finish(self) -> Iterator[Labelled]:
        """The rest, and a report of what lacks its counterpart."""
        yield from self._match(self._current, self._base)
        yield from self._settle()
        for found in self._waiting.values():
            for base in list(found.images):
                yield from self._match(found, base)
            yield from self._match_by_key(found)
            self._report(found)
        self._waiting.clear()

    def _settle(self) -> Iterator[Labelled]:
        """The key that was read last is complete, unless the shard is in another order."""
        found, self._current = self._current, _Key()
        yield from self._match_by_key(found)
        if found.matched:
            self._report(found)
        elif found.images or found.labels:
            before = self._waiting.setdefault(self._key, _Key())
            for base, images in found.images.items():
                before.images.setdefault(base, []).extend(images)
            for base, labels in found.labels.items():
                before.labels.setdefault(base, {}).update(labels)

    def _match(self, found: _Key, base: str) -> Iterator[Labelled]:
        if base in found.images and base in found.labels:
            yield from self._pair(found, found.images.pop(base), found.labels.pop(base))

    def _match_by_key(self, found: _Key) -> Iterator[Labelled]:
        """`k.img.jpg` beside `k.cls`, where there is nothing else to choose."""
        if not found.matched and len(found.images) == len(found.labels) == 1:
            (_, images), (_, labels) = found.images.popitem(), found.labels.popitem()
            yield from self._pair(found, images, labels)

    def _pair(
        self, found: _Key, images: list[Member], labels: dict[str, Member]
    ) -> Iterator[Labelled]:
        found.matched = True
        for extra in images[1:]:
            self.problems.append((self._name(extra), "a second image of the same key"))
        label = self._label(images[0], labels)
        if label is not None:
            yield Labelled(label, images[0])

    def _report(self, found: _Key) -> None:
        for image in (image for images in found.images.values() for image in images):
            if found.matched:
                self.leave_out(self._name(image), "further images of a key that has its image")
            else:
                self.problems.append((self._name(image), "no label: neither .cls nor .json"))
        for label in (label for labels in found.labels.values() for label in labels.values()):
            self.leave_out(self._name(label), "labels without an image")

    def _label(self, image: Member, labels: dict[str, Member]) -> Label | None:
        """The label, or None where it cannot be read or two of them differ."""
        read: dict[str, Label] = {}
        for suffix in LABEL_SUFFIXES:
            member = labels.get(suffix)
            if member is None or (suffix == ".json" and self.label_field is None and read):
                continue  # a .json beside a .cls may hold anything
            value = self.value(member, suffix)
            if isinstance(value, ValueError):
                self.problems.append((self._name(image), str(value)))
                return None
            read[suffix] = value
        return read[
            ".json" if self.label_field is not None and ".json" in read else next(iter(read))
        ]

    def value(self, member: Member, suffix: str) -> Label | ValueError:
        """A label as it stands in a member, or why there is none."""
        name = member.path.rpartition("/")[2]
        if member.size > _LARGEST_LABEL:
            return ValueError(f"its label {name} has {member.size:,} bytes")
        self.file.seek(member.offset)
        data = self.file.read(member.size)
        try:
            if suffix == ".cls":
                return _number_or_name(data.decode("utf-8-sig"))
            return self._from_json(json.loads(data), name)
        except (ValueError, RecursionError) as error:
            said = "is no text in UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            return ValueError(f"its label {name} cannot be read: {said}".splitlines()[0])

    def _from_json(self, content: object, name: str) -> Label:
        if isinstance(content, dict):
            fields = LABEL_FIELDS if self.label_field is None else (self.label_field,)
            found = next((f for f in fields if content.get(f) is not None), None)
            if found is None:
                shown = ", ".join(map(str, list(content)[:8])) or "none"
                raise ValueError(f"no field {fields[0]!r} among {shown}: give --label-column")
            content = content[found]
        if isinstance(content, bool) or not isinstance(content, int | str):
            raise ValueError("its label is neither a number nor a name")
        return _number_or_name(content) if isinstance(content, str) else content

    def _name(self, member: Member) -> str:
        return f"{self.where}:{member.path}"


def _split(path: str) -> tuple[str, str]:
    """(path without ending, ending in lower case with its dot)."""
    base, dot, ending = path.rpartition(".")
    if not dot or "/" in ending or base.endswith("/") or not base:
        return path, ""
    return base, f".{ending.lower()}"


def _key(base: str) -> str:
    """The key of a path without its last ending: all up to the first dot of the name."""
    folder, slash, name = base.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _is_image(member: Member) -> bool:
    return _split(member.path)[1] in IMAGE_SUFFIXES


def _number_or_name(text: str) -> Label:
    text = text.strip()
    if not text:
        raise ValueError("it is empty")
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) < 10 else text


def name_classes(
    labels: dict[Label, str], folders: list[Path], where: str
) -> tuple[list[str], str]:
    """The class names for all labels of a source, and what is to be said of them.

    Numbers are positions among the names of a file beside the shards, or stand for themselves;
    names are sorted.

    Args:
        labels: every label, with the name of a tar in which it stands.
        folders: where a file of class names is looked for.
        where: the source, for messages.

    Raises:
        UserError: numbers in one place and names in another, or more classes than names.
    """
    numbers = sorted(label for label in labels if isinstance(label, int))
    texts = sorted(label for label in labels if isinstance(label, str))
    if numbers and texts:
        raise UserError(
            f"{where}: labels are numbers in {labels[numbers[0]]} ({numbers[0]}) and names in "
            f"{labels[texts[0]]} ({texts[0]!r}): make them one or the other"
        )
    if texts:
        return texts, "class names are the labels' own"
    if numbers[0] < 0:
        raise UserError(
            f"{where}: the label {numbers[0]} in {labels[numbers[0]]} is no class: "
            "labels count from 0"
        )
    file = next((f / n for f in folders for n in CLASS_NAME_FILES if (f / n).is_file()), None)
    if file is None:
        looked = ", ".join(CLASS_NAME_FILES[:2])
        return [str(i) for i in range(numbers[-1] + 1)], (
            f"classes are called by their numbers, as no {looked} with names lies beside the shards"
        )
    names = _read_names(file)
    if len(names) <= numbers[-1]:
        raise UserError(
            f"{file} names {len(names)} classes, but {labels[numbers[-1]]} has the label "
            f"{numbers[-1]}: complete it or take it away"
        )
    return names, f"class names are those of {file.name}"


def _read_names(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as class names: {error}") from None
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise UserError(f"{file} names {twice!r} twice: name each class once, one a line")
    return names
