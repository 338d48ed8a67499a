"""docs/data.md shows the code's own lists, and its layouts are read as it says."""

from pathlib import Path

import pytest

from pipelines.data import file_kinds, layout
from pipelines.data.sources import (
    folder_layout,
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


def names(items, quote: bool = True) -> str:
    return ", ".join(f"`{item}`" if quote else str(item) for item in items)


TABLES = {
    "layouts": table(
        "| folders with images | read as |",
        ((f"`{key}`", value) for key, value in folder_layout.LAYOUTS.items()),
    ),
    "refused": table(
        "| folders with images | why, and what settles it |",
        ((f"`{key}`", value) for key, value in folder_layout.REFUSED.items()),
    ),
    "splits": table(
        "| split | words |", ((key, names(words)) for key, words in layout.SPLIT_WORDS.items())
    ),
    "fillers": names(sorted(layout.FILLERS)),
    "foreign": names(repr(name)[1:-1] for name in sorted(layout.FOREIGN_NAMES)),
    "suffixes": names(sorted(folder_tree.IMAGE_SUFFIXES)),
    "formats": table("| format | what of it |", file_kinds.READ.items()),
    "pixels": table("| pixels | become |", file_kinds.PIXELS.items()),
    "columns": table(
        "| column | known by its name | types |",
        [
            ("image", names(parquet_columns.IMAGE_NAMES), "; ".join(
                parquet_columns.IMAGE_TYPES[kind] for kind in ("bytes", "list of bytes", "struct")
            )),
            ("path of the image", names(parquet_columns.PATH_NAMES),
             parquet_columns.IMAGE_TYPES["path"]),
            ("label", names(parquet_columns.LABEL_NAMES),
             "; ".join(parquet_columns.LABEL_TYPES.values())),
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


def _made(root: Path, example: str) -> Path:
    for number, place in enumerate(example.split(", ")):
        for name in ("a", "b"):
            make(root, place.replace("CLASS", name), count=number + 2)
    return root


@pytest.mark.parametrize("example", folder_layout.LAYOUTS)
def test_layouts_are_read_as_the_page_says(tmp_path, example):
    source, samples = opened(_made(tmp_path, example))
    assert set(source.classes) - {"train"} == {"a", "b"}
    splits = {
        place for place in ("train", "val") if f"{place}/" in example or f"/{place}" in example
    }
    assert {split for _, split in samples.values()} == (splits or {""})


@pytest.mark.parametrize("example", folder_layout.REFUSED)
def test_layouts_are_refused_as_the_page_says(tmp_path, example):
    said = folder_layout.REFUSED[example]
    option = next(word.strip("`,.)") for word in said.split() if "--" in word)
    with pytest.raises(UserError, match=option):
        opened(_made(tmp_path, example))
