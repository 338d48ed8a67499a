"""What lies below a directory, found in one walk: folders, images, shards, and what is neither."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.data.layout import foreign
from pipelines.data.sources.file_list import File, Files
from pipelines.data.sources.source import LeftOut, Tally

IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif",
    ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".heic", ".heif",
    ".jxl",
})  # fmt: skip
"""Endings of names, in any case, that make a file an image: one that is broken is refused."""

_PICTURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM.{4}\0\0\0\0|II\*\0|MM\0\*|RIFF.{4}WEBP|P[1-6]\s[\d#]"
    rb"|\0\0\0\x0cjP  |\0\0\0\x0cJXL |\xff\x0a|.{4}ftyp(?:avi|hei|hev|mif)",
    re.DOTALL,
)
_MOST_LINKS = 3  # linked folders within one another that are followed
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
_SHARDS = {".parquet": "parquet", ".tar": "tar"}


@dataclass(eq=False)
class Folder:
    """A folder that is not foreign.

    `path` is relative to the root, "" for the root itself. `images` are (name, bytes, time of
    change); `num_images` counts those here and below. `links` is how many links lead to it.
    """

    path: str
    parent: Folder | None = None
    folders: dict[str, Folder] = field(default_factory=dict)
    images: Files | list[File] = field(default_factory=Files)
    num_images: int = 0
    identity: tuple[int, int] = (0, 0)
    links: int = 0

    @property
    def holding(self) -> dict[str, Folder]:
        """The folders in it, by name, that hold an image somewhere, sorted."""
        return {
            name: self.folders[name]
            for name in sorted(self.folders)
            if self.folders[name].num_images
        }

    def walk(self) -> Iterator[Folder]:
        """It and all folders below."""
        waiting = [self]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting.extend(folder.folders.values())

    def files(self) -> list[File]:
        """(path relative to the root, bytes, time of change) of all images below, sorted."""
        return sorted(
            (f"{folder.path}/{name}" if folder.path else name, size, modified)
            for folder in self.walk()
            for name, size, modified in folder.images
        )


def class_root(folder: Folder) -> Folder:
    """Where in a split the classes are: train/images/CLASS has a folder more."""
    while (inner := wrapped(folder)) is not None:
        folder = inner
    return folder


def wrapped(folder: Folder) -> Folder | None:
    """The one folder in it that holds all images, if that holds several that do; else None."""
    inner = list(folder.holding.values())
    if folder.images or len(inner) != 1 or inner[0].images:
        return None
    return inner[0] if len(inner[0].holding) > 1 or wrapped(inner[0]) is not None else None


@dataclass
class Tree:
    """A directory that was walked.

    `shards` are the paths, relative to the root, of "parquet" and "tar" files, `tables` those of
    CSV files. `problems` are (name, reason) of what should have been read and could not be.
    """

    root: Folder
    shards: dict[str, list[str]]
    left_out: list[LeftOut]
    problems: list[tuple[str, str]]
    tables: list[str] = field(default_factory=list)


def scan(root: Path, *, beside: bool = False) -> Tree:
    """Walk a directory, following links.

    An image is a file whose name ends like one, or whose first bytes are those of one: a wrong
    ending must not make it vanish. `beside`: it lies outside the source's own directory, so all
    paths are whole ones.
    """
    walk = _Walk("" if beside else str(root))
    top = Folder(str(root) if beside else "")
    folders, waiting = [], [top]
    while waiting:
        folder = waiting.pop()
        folders.append(folder)
        waiting.extend(walk.read(folder))
    for folder in reversed(folders):  # children come after their parents
        folder.num_images += len(folder.images)
        if folder.parent is not None:
            folder.parent.num_images += folder.num_images
    shards = {kind: sorted(walk.shards[kind]) for kind in walk.shards}
    return Tree(top, shards, walk.left_out.told(), sorted(walk.problems), walk.tables)


class _Walk:
    def __init__(self, base: str) -> None:
        self._base = base
        self.left_out = Tally()
        self.problems: list[tuple[str, str]] = []
        self.tables: list[str] = []
        self.shards: dict[str, list[str]] = {kind: [] for kind in _SHARDS.values()}

    def read(self, folder: Folder) -> list[Folder]:
        """List one folder; gives the folders in it."""
        try:
            status = os.stat(self._full(folder.path))
            folder.identity = status.st_dev, status.st_ino
            with os.scandir(self._full(folder.path)) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.problems.append((folder.path or ".", f"cannot be read: {error.strerror}"))
            return []
        for entry in listed:
            path = f"{folder.path}/{entry.name}" if folder.path else entry.name
            why = foreign(entry.name)
            if why:
                self.left_out(path, why)
                continue
            try:
                self._take(entry, path, folder)
            except FileNotFoundError:
                self.problems.append((path, "a link that leads nowhere"))
            except OSError as error:
                self.problems.append((path, f"cannot be read: {error.strerror}"))
        return list(folder.folders.values())

    def _take(self, entry: os.DirEntry[str], path: str, folder: Folder) -> None:
        status = entry.stat()
        if stat.S_ISDIR(status.st_mode):
            linked = entry.is_symlink()
            below = Folder(path, folder, links=folder.links + linked)
            if linked and _leads_back(folder, (status.st_dev, status.st_ino)):
                self.left_out(path, "links to a folder they lie in")
            elif below.links > _MOST_LINKS:
                self.left_out(path, f"linked folders within {_MOST_LINKS} others")
            else:
                folder.folders[entry.name] = below
        elif not stat.S_ISREG(status.st_mode):
            self.left_out(path, "neither file nor folder")
        elif (suffix := os.path.splitext(entry.name)[1].lower()) in IMAGE_SUFFIXES:
            folder.images.append((entry.name, status.st_size, status.st_mtime_ns))
        elif suffix in _SHARDS:
            self.shards[_SHARDS[suffix]].append(path)
        elif suffix in TABLE_SUFFIXES:
            self.tables.append(path)
            self.left_out(path, f"no images ({suffix})")
        elif self._is_picture(path):
            folder.images.append((entry.name, status.st_size, status.st_mtime_ns))
        else:
            self.left_out(path, f"no images ({suffix or 'no ending'})")

    def _is_picture(self, path: str) -> bool:
        try:
            with open(self._full(path), "rb", buffering=0) as file:
                return _PICTURE.match(file.read(16)) is not None
        except OSError:
            return True  # whoever reads it says why it cannot be read

    def _full(self, path: str) -> str:
        return os.path.join(self._base, path)


def _leads_back(folder: Folder | None, identity: tuple[int, int]) -> bool:
    while folder is not None:
        if folder.identity == identity:
            return True
        folder = folder.parent
    return False
