"""What names of folders and files say: which split, which things are neither data nor class.

Pure functions of names; nothing here looks at a disk. Folders of images, Parquet files and tar
shards are read by the same rules, which follow torchvision, timm and `datasets`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

Split = Literal["train", "val", "test", ""]
"""What a name speaks of; "" is no split. Test splits are left out: hubs' have no true labels."""

SPLIT_WORDS: dict[Literal["train", "val", "test"], tuple[str, ...]] = {
    "train": ("train", "training", "trainval"),
    "val": (
        "val", "valid", "validation", "validate", "dev", "devel", "development", "eval",
        "evaluation",
    ),
    "test": ("test", "testing"),
}  # fmt: skip
"""The words for each split, in any case."""

FILLERS = frozenset({
    "set", "sets", "split", "splits", "subset", "data", "dataset", "image", "images", "img", "imgs",
    "photo", "photos", "picture", "pictures", "pics", "jpg", "jpeg", "jpegs", "png", "seg", "cls",
    "raw", "full", "partial", "new", "labeled", "labelled", "folder", "dir", "crop", "cropped",
    "resized", "ilsvrc", "imagenet", "clsloc", "loc", "coco", "shard", "shards", "part", "parquet",
})  # fmt: skip
"""Words that may stand beside the word for a split in a folder's name, as in `seg_train`."""

HOLDERS = frozenset({"image", "images", "img", "imgs", "jpegimages", "data", "dataset"})
"""Words for a folder of images: a folder of such a name among others is hardly a class."""

PARTS = frozenset({*FILLERS, "batch", "fold", "chunk", "volume", "vol", "disc", "disk"})
"""Words that, with a number, name one of several parts of the same: `images_001`, `fold3`."""

FOREIGN_NAMES = frozenset({
    "__macosx", "icon\r", "network trash folder", "temporary items",  # macOS
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "recycler",
    "recycled", "system volume information",  # Windows
    "lost+found",  # Linux
    "@eadir", "#recycle", "#snapshot", "@tmp", "@recycle", "@recently-snapshot",  # file servers
    "__pycache__", "_success", "_temporary", "_metadata", "_common_metadata", "_delta_log",
    "_spark_metadata",  # programs
})  # fmt: skip
"""Names, in lower case, that systems and programs leave behind; hidden ones are foreign besides."""

_FOREIGN_PREFIXES = ("~$", "_committed_", "_started_", "found.0")
_UNFINISHED = (".partial", ".crdownload", ".tmp", ".part", ".download", ".incomplete", ".aria2")
_WORD_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words}
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_]+")


def foreign(name: str) -> str:
    """Why a file or folder of this name is no part of anybody's data; "" if it may be."""
    lower = name.lower()
    if lower in FOREIGN_NAMES or lower.startswith(_FOREIGN_PREFIXES):
        return "left by a system or program"
    if name.startswith("."):
        return "hidden"
    return "an unfinished download" if lower.endswith(_UNFINISHED) else ""


def foreign_path(relative: str) -> str:
    """`foreign` of the first part of a path below the source that is, with slashes."""
    return next((why for part in relative.split("/") if (why := foreign(part))), "")


def split_of_folder(name: str) -> Split:
    """Which split a folder's name speaks of.

    The name is a word for a split, alone or with words that mean nothing (`FILLERS`), numbers and
    signs: `Train`, `train2017`, `seg_train`, `images-val`, `split=test`. A name with any other word
    is none (`steam_train`, `test tube`, `retrain`), for classes are named like that.
    """
    words = _words(name)
    found = _splits(words)
    return found.pop() if len(found) == 1 and all(map(_means_nothing_else, words)) else ""


def splits_of_folders(names: Iterable[str]) -> dict[str, Split]:
    """Which of the folders that lie side by side speak of a split, and of which.

    Besides those of `split_of_folder` these are folders of one name but for the split's word:
    `cars_train` and `cars_test`. One of them alone may be a class, like `bullet_train`.
    """
    found: dict[str, Split] = {}
    alike: defaultdict[tuple[str, ...], dict[str, Split]] = defaultdict(dict)
    for name in names:
        words = _words(name)
        if split := split_of_folder(name):
            found[name] = split
        elif len(spoken := _splits(words)) == 1:
            others = tuple(word for word in words if not _means_nothing_else(word))
            alike[others][name] = spoken.pop()
    for group in alike.values():
        if len(set(group.values())) > 1:
            found |= group
    return found


def split_of_path(relative: str) -> Split:
    """Which split a shard belongs to, by the folders below the source and by its own name.

    A file's name counts by any word that stands by itself: `train-00000-of-00294.parquet`,
    `imagenet_val_03.tar`; not `latest.parquet`, `retrain-1.tar`.

    Raises:
        ValueError: its parts speak of different splits.
    """
    *folders, name = relative.split("/")
    found: set[Split] = {split for folder in folders if (split := split_of_folder(folder))}
    found |= _splits(_words(name))
    if len(found) > 1:
        raise ValueError(f"{relative} speaks of {' and '.join(sorted(found))} at once")
    return found.pop() if found else ""


def says_nothing(name: str) -> bool:
    """Whether a name is made of words that mean nothing and numbers only: `shard-000012`."""
    return all(word in FILLERS for word in _words(name))


def only_holds(name: str) -> bool:
    """Whether a folder's name says no more than that images are in it: `images`, `img_data`."""
    return says_nothing(name) and not HOLDERS.isdisjoint(_words(name))


def are_parts(names: Iterable[str]) -> bool:
    """Whether names differ by numbers only and name parts of something: `images_1`, `images_2`."""
    found = {tuple(_words(name)) for name in names}
    return len(found) == 1 and not PARTS.isdisjoint(found.pop())


def _words(name: str) -> list[str]:
    """The words of a name in lower case: `TrainImages_2` has two."""
    return [word.lower() for word in _WORDS.findall(name)]


def _splits(words: list[str]) -> set[Split]:
    return {split for word in words if (split := _split_of_word(word))}


def _split_of_word(word: str) -> Split:
    """`train`, also with a filler behind it: `trainset`."""
    if word in _WORD_OF:
        return _WORD_OF[word]
    return next(
        (
            split
            for start, split in _WORD_OF.items()
            if word.startswith(start) and word[len(start) :] in FILLERS
        ),
        "",
    )


def _means_nothing_else(word: str) -> bool:
    return word in FILLERS or _split_of_word(word) != ""
