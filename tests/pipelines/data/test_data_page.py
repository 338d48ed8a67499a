"""docs/data.md shows the code's own lists, and its layouts are read as it says."""

from pathlib import Path

import pytest

from pipelines.data import file_kinds, layout
from pipelines.data.sources import (
    folder_tree,
    imagenet,
    labelled,
    parquet_columns,
    webdataset,
)
from pipelines.errors import UserError

from .folders import make, opened

PAGE = Path(__file__).parents[3] / "docs/data.md"


def table(head: str, rows) -> str:
    """A table in Markdown."""
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def shown(head: str) -> dict[str, str]:
    """The rows of the page's table under a head: first cell, the last one."""
    _, _, rest = PAGE.read_text().partition(f"{head}\n")
    rows = [line.strip("| ").split(" | ") for line in rest.partition("\n\n")[0].splitlines()[1:]]
    return {row[0].strip("`"): row[-1] for row in rows}


def names(items, quote: bool = True) -> str:
    return ", ".join(f"`{item}`" if quote else str(item) for item in items)


LAYOUTS = shown("| folders with images | read as |")
REFUSED = shown("| folders with images | why, and what settles it |")
COLUMN_TYPES = shown("| column | known by its name | types |")
TABLES = {
    "splits": table(
        "| split | words |", ((key, names(words)) for key, words in layout.SPLIT_WORDS.items())
    ),
    "fillers": names(sorted(layout.FILLERS)),
    "foreign": names(repr(name)[1:-1] for name in sorted(layout.FOREIGN_NAMES)),
    "suffixes": names(sorted(folder_tree.IMAGE_SUFFIXES)),
    "columns": table(
        "| column | known by its name | types |",
        [
            ("image", names(parquet_columns.IMAGE_NAMES), COLUMN_TYPES["image"]),
            ("path of the image", names(parquet_columns.PATH_NAMES),
             COLUMN_TYPES["path of the image"]),
            ("label", names(parquet_columns.LABEL_NAMES), COLUMN_TYPES["label"]),
            ("split", names([parquet_columns.SPLIT_NAME]), "text"),
        ],
    ),
    "csv": table(
        "| column | known by its name, in any case |",
        [
            ("image", names(labelled.IMAGE_COLUMNS)),
            ("label", names(labelled.LABEL_COLUMNS)),
            ("split", names(labelled.SPLIT_COLUMNS)),
        ],
    ),
    "webdataset": table(
        "| what | where |",
        [
            ("label", names(f"KEY{suffix}" for suffix in webdataset.LABEL_SUFFIXES)),
            ("field of a JSON file", names(webdataset.LABEL_FIELDS)),
            ("names of numbered classes", names(webdataset.CLASS_NAME_FILES)),
        ],
    ),
    "imagenet": names([
        imagenet.SOLUTION, imagenet.NUMBERS, imagenet.WNIDS, imagenet.TINY, *imagenet.ORDERS,
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_the_page_has_the_codes_lists(name):
    assert TABLES[name] in PAGE.read_text()


def test_the_page_tells_of_each_format_that_is_read():
    assert tuple(shown("| format | what of it |")) == file_kinds.READ


def _made(root: Path, example: str) -> Path:
    for number, place in enumerate(example.split(", ")):
        for name in ("a", "b"):
            make(root, place.replace("CLASS", name), count=number + 2)
    return root


@pytest.mark.parametrize("example", LAYOUTS)
def test_layouts_are_read_as_the_page_says(tmp_path, example):
    source, samples = opened(_made(tmp_path, example))
    assert set(source.classes) - {"train"} == {"a", "b"}
    splits = {
        place for place in ("train", "val") if f"{place}/" in example or f"/{place}" in example
    }
    assert {split for _, split in samples.values()} == (splits or {""})


@pytest.mark.parametrize("example", REFUSED)
def test_layouts_are_refused_as_the_page_says(tmp_path, example):
    said = REFUSED[example]
    option = next(word.strip("`,.)") for word in said.split() if "--" in word)
    with pytest.raises(UserError, match=option):
        opened(_made(tmp_path, example))
