"""Images beside a table of labels: a CSV or JSON Lines file that names each image and its class."""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from pipelines.data.class_choice import chosen_classes, order_notes
from pipelines.data.layout import Split, split_of_folder
from pipelines.data.names import printable
from pipelines.data.options import PrepareOptions
from pipelines.data.sources.file_list import Labelled
from pipelines.data.sources.folder import FolderUnits, folder_at
from pipelines.data.sources.folder_tree import IMAGE_SUFFIXES, Tree
from pipelines.data.sources.source import Source, Tally
from pipelines.errors import UserError

IMAGE_COLUMNS = (
    "image", "filename", "file_name", "file", "path", "filepath", "image_path", "image_name",
    "image_id", "img", "id", "name",
)  # fmt: skip
LABEL_COLUMNS = ("label", "class", "category", "target", "label_name", "class_name")
SPLIT_COLUMNS = ("split", "set", "partition", "subset")
"""Names of columns, in any case, the first that is there; others are named by an option."""

JSON_LINES = (".jsonl", ".ndjson")
"""Endings of tables that have a JSON object on each line; others are CSV."""

_FROM_ROOT = re.compile(r"/|[A-Za-z]:/")

Row = tuple[str, str, str]
"""(image, label, split) as the table has them."""


def labelled_source(root: Path, options: PrepareOptions, tree: Tree) -> Source:
    """List the images that a table names; it names them with or without folder and ending.

    The table, `options.labels`, is below `root`, which was scanned, or from here. Classes are in
    the order of their names as text, or of their numbers where all are whole ones.

    Raises:
        UserError: no such table or column, a name that several images have, or no image at all.
    """
    named = str(options.labels)
    table = next((p for p in (root / named, Path(named)) if p.is_file()), None)
    if table is None:
        raise UserError(f"--labels {named}: no such file in {printable(root)}, nor from here")
    left_out, where = Tally(), printable(table)
    trees = [tree]
    places = {
        split: folder_at(root, given, option, trees)
        for split, given, option in (
            ("train", options.train_from, "--train"),
            ("val", options.val_from, "--val"),
        )
        if given is not None
    }
    files = {file[0]: file for top in trees for file in top.root.files()}
    inside = {split: {path for path, _, _ in folder.files()} for split, folder in places.items()}
    if "train" in places:  # what lies elsewhere is not spoken of
        known = set().union(*inside.values())
        for other in sorted(files.keys() - known):
            left_out(other, "images outside --train and --val")
        files = {path: file for path, file in files.items() if path in known}
    index = _Index(files)
    problems: list[tuple[str, str]] = []
    taken: dict[str, tuple[str, Split]] = {}
    for name, label, written in read_table(table, options):
        if (path := index.find(name, table.parent, root)) is None:
            problems.append((name, f"named in {table.name}, but there is no such image"))
            continue
        given: Split = "val" if path in inside.get("val", ()) else "train"
        split = given if inside else _split(written, path, table)
        if not label:
            left_out(path, "without a label in the table")
        elif taken.setdefault(path, (label, split)) != (label, split):
            problems.append((path, f"has two labels in {table.name}: {taken[path][0]} and {label}"))
    for file in files:
        if file not in taken:
            left_out(file, f"images that {table.name} does not name")
        elif taken[file][1] == "test":
            left_out(file, "images of the test split")
    found = _order({label for label, split in taken.values() if split != "test"})
    if not found:
        raise UserError(
            f"{where} names no image in {printable(root)}: is --image-column the right one?"
        )
    if len(found) == 1 and options.classes is None:
        raise UserError(
            f"{where} has one class only, {printable(found[0])!r}: is --label-column "
            f"right? If it is, give --class {shlex.quote(printable(found[0]))}"
        )
    chosen = [found[i] for i in chosen_classes(found, options.classes, str(root))]
    number = {name: i for i, name in enumerate(chosen)}
    listed: list[Labelled] = []
    origins: dict[str, list[str]] = {}
    for path, (label, split) in taken.items():
        if split == "test":
            continue
        if label not in number:
            left_out(path, "images of classes that were not chosen")
            continue
        listed.append((split, number[label], files[path]))
        origins.setdefault(split, [str(table)])
    return Source(
        str(root),
        chosen,
        FolderUnits(root, sorted(listed)),
        problems=[problem for top in trees for problem in top.problems] + problems,
        origins=origins,
        left_out=[entry for top in trees for entry in top.left_out] + left_out.told(),
        notes=order_notes(found),
    )


def read_table(table: Path, options: PrepareOptions) -> Iterator[Row]:
    """The rows of a table with a line of column names, or of JSON objects, one a line.

    Raises:
        UserError: it is no such table, or which columns are meant cannot be told.
    """
    try:
        rows = _json_rows(table) if table.suffix.lower() in JSON_LINES else _text_rows(table)
        _, header = next(rows, (0, []))
        image, label, split = _columns([name.strip() for name in header], table, options)
        for line, row in rows:
            if len(row) > max(image, label, split):
                yield row[image].strip(), row[label].strip(), row[split] if split >= 0 else ""
            elif any(row):
                raise UserError(f"{printable(table)}, line {line}: too few columns")
    except (OSError, csv.Error, ValueError) as error:
        raise UserError(
            f"{printable(table)} cannot be read as a table: {error}", exit_code=1
        ) from None


def _text_rows(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Lines with their numbers; between the columns commas, semicolons or tabs."""
    with table.open("rb") as file:
        wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # Excel's Unicode text
    encoding = "utf-16" if wide else "utf-8-sig"
    with table.open(encoding=encoding, errors="surrogateescape", newline="") as text:
        first = text.readline()
        text.seek(0)
        rows = csv.reader(text, delimiter=max(",;\t", key=first.count))
        for row in rows:
            yield rows.line_num, row


def _json_rows(table: Path) -> Iterator[tuple[int, list[str]]]:
    """The names in the first object, then each object's values of these."""
    names: list[str] = []
    with table.open(encoding="utf-8-sig", errors="surrogateescape") as text:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no JSON object")
            if not names:
                names = list(row)
                yield number, names
            values = (row.get(name) for name in names)
            yield number, [str(v) if isinstance(v, str | int | float) else "" for v in values]


def _columns(header: list[str], table: Path, options: PrepareOptions) -> tuple[int, int, int]:
    """Positions of image, label and split (-1: none)."""
    if first := next((name for name in header if _is_image(name.split(" ")[0])), None):
        raise UserError(
            f"{printable(table)} begins with {first!r}: put a line of column names first, and "
            "commas between the columns"
        )
    lower = [name.lower() for name in header]
    found: list[int] = []
    for given, known, option in (
        (options.image_column, IMAGE_COLUMNS, "--image-column"),
        (options.label_column, LABEL_COLUMNS, "--label-column"),
        (options.split_column, SPLIT_COLUMNS, "--split-column"),
    ):
        if given is not None:
            if given not in header:
                raise UserError(
                    f"{printable(table)} has no column {given!r}, only {', '.join(header)}"
                )
            found.append(header.index(given))
            continue
        found.append(next((lower.index(name) for name in known if name in lower), -1))
        if found[-1] < 0 and option != "--split-column" and len(header) == 2:
            found[-1] = len(found) - 1  # the image stands first
        if found[-1] < 0 and option != "--split-column":
            raise UserError(
                f"{printable(table)} has the columns {', '.join(header)}: give {option} NAME"
            )
    image, label, split = found
    if image == label:
        raise UserError(
            f"{printable(table)}: {header[image]!r} cannot be image and label: give --label-column"
        )
    return image, label, split


class _Index:
    """Images by what a table may call them."""

    def __init__(self, files: dict[str, tuple[str, int, int]]) -> None:
        self._files = files
        self._by_name: dict[str, list[str]] = {}
        for path in files:
            name = path.rpartition("/")[2]
            for key in {name, _stem(name)}:
                self._by_name.setdefault(key, []).append(path)

    def find(self, written: str, beside: Path, root: Path) -> str | None:
        """The path of the image that is meant; None if there is none.

        Raises:
            UserError: there are several.
        """
        path = written.replace("\\", "/").removeprefix("./")
        if _FROM_ROOT.match(path):  # perhaps another machine's: the last parts count
            parts = path.split("/")
            ends = [path, *("/".join(parts[i:]) for i in range(1, len(parts)))]
            return next((end for end in ends if end in self._files), None)
        near = f"{beside.relative_to(root)}/{path}" if beside.is_relative_to(root) else path
        for candidate in (path, near.removeprefix("./")):
            if candidate in self._files:
                return candidate
        same = self._by_name.get(path.rpartition("/")[2], [])
        ends = [
            p for p in same if f"/{p}".endswith(f"/{path}") or f"/{_stem(p)}".endswith(f"/{path}")
        ]
        if len(ends) > 1:
            raise UserError(
                f"the table's {written!r} may be {ends[0]} or {ends[1]}: say by --train DIR (and "
                "--val DIR) in which folder the images lie"
            )
        return ends[0] if ends else None


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _stem(name: str) -> str:
    """A name without the ending of an image."""
    return name.rpartition(".")[0] if _is_image(name) else name


def _split(written: str, path: str, table: Path) -> Split:
    """The split that the table's column says, else that of the folders the image is in."""
    if not written.strip():
        folders = path.split("/")[:-1]
        return next((split for name in folders if (split := split_of_folder(name))), "")
    split = split_of_folder(written.strip())
    if not split:
        raise UserError(f"{printable(table)}: {written!r} is no split: train, val or test")
    return split


def _order(names: set[str]) -> list[str]:
    if all(name.isascii() and name.removeprefix("-").isdigit() for name in names):
        return sorted(names, key=int)
    return sorted(names)
