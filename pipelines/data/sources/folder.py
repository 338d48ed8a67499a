"""An ImageNet-style directory: `train/CLASS/…` and `val/CLASS/…`, or `CLASS/…` alone."""

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.data.sources.base import Sample, Source
from pipelines.errors import UserError

_UNIT = 256
_SMALLEST_UNIT = 32
_VAL_NAMES = ("val", "valid", "validation")


@dataclass(frozen=True)
class FolderUnit:
    """Some files below `root`: (split, label, path relative to root).

    `stamp` changes with the files' sizes and times, so that a run that is taken up again reads anew
    what was replaced meanwhile.
    """

    root: str
    entries: tuple[tuple[str, int, str], ...]
    stamp: str = ""

    @property
    def num_samples(self) -> int:
        """See `Unit`."""
        return len(self.entries)

    def read(self) -> Iterator[Sample]:
        """See `Unit`."""
        for split, label, relative in self.entries:
            data, error = b"", ""
            try:
                data = Path(self.root, relative).read_bytes()
            except OSError as problem:
                error = f"cannot be read: {problem.strerror}"
            yield Sample(relative, split, label, data, error)


def folder_source(root: Path, classes: int | list[str] | None) -> Source:
    """List a directory of class folders.

    Every file that is not hidden counts as an image, so that one which is not gets reported.

    Args:
        root: the directory.
        classes: the first so many classes by name, or the named ones; None: all.

    Raises:
        UserError: no class folders, or a named class is not there.
    """
    root = root.resolve()
    problems: list[tuple[str, str]] = []
    if (root / "train").is_dir():
        val = next((root / name for name in _VAL_NAMES if (root / name).is_dir()), None)
        folders = {"train": root / "train"} | ({"val": val} if val else {})
    else:
        folders = {"": root}
    listed = {split: _subfolders(folder, root, problems) for split, folder in folders.items()}
    found = sorted(set().union(*(set(names) for names in listed.values())))
    if not found:
        raise UserError(
            f"{root} has no class folders: expected train/CLASS/IMAGE (and val/CLASS/IMAGE), "
            "or CLASS/IMAGE"
        )
    chosen = choose_classes(found, classes, str(root))
    entries: list[tuple[str, int, str]] = []
    stamps: list[tuple[int, int]] = []
    for split, folder in folders.items():
        for label, name in enumerate(chosen):
            files = _files(folder / name, root, problems) if name in listed[split] else []
            if not files:
                where = str(folder.relative_to(root) / name)
                problems.append((where, no_images(name, split or "train")))
            entries += [(split, label, file) for file, _, _ in files]
            stamps += [(size, modified) for _, size, modified in files]
    units = [
        FolderUnit(
            str(root),
            tuple(entries[start:end]),
            hashlib.sha256(repr(stamps[start:end]).encode()).hexdigest()[:16],
        )
        for start, end in unit_bounds(len(entries))
    ]
    return Source(str(root), chosen, units, problems=problems)


def unit_bounds(count: int) -> list[tuple[int, int]]:
    """(first, end) of each unit of `count` files; the last units are smaller.

    Units are handed out in order, one after the other, so that at the end of the work no process
    has a large one left while the others have nothing to do.
    """
    bounds: list[tuple[int, int]] = []
    start = 0
    while start < count:
        left = count - start
        size = min(_UNIT, max(_SMALLEST_UNIT, left // 8))
        bounds.append((start, min(start + size, count)))
        start += size
    return bounds


def no_images(name: str, split: str) -> str:
    """Why a class is reported that a split lacks."""
    return f"class {name} has no images in {split}"


def choose_classes(found: list[str], wanted: int | list[str] | None, where: str) -> list[str]:
    """The classes to keep, sorted as found.

    Raises:
        UserError: more or other classes wanted than there are.
    """
    if wanted is None:
        return found
    if isinstance(wanted, int):
        if not 1 <= wanted <= len(found):
            raise UserError(f"--classes {wanted}: {where} has {len(found)} classes")
        return found[:wanted]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(f"--classes: {where} has no class {missing[0]!r}")
    return [name for name in found if name in set(wanted)]


def _subfolders(folder: Path, root: Path, problems: list[tuple[str, str]]) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        problems.append((str(folder.relative_to(root)), f"cannot be read: {error.strerror}"))
        return []


def _files(folder: Path, root: Path, problems: list[tuple[str, str]]) -> list[tuple[str, int, int]]:
    """(path relative to root, bytes, time of change) of regular files below a folder, sorted."""

    def report(error: OSError) -> None:
        where = Path(error.filename or folder)
        problems.append((str(where.relative_to(root)), f"cannot be read: {error.strerror}"))

    found: list[tuple[str, int, int]] = []
    for directory, _, names in os.walk(folder, onerror=report):
        base = Path(directory).relative_to(root)
        for name in names:
            if name.startswith("."):
                continue
            try:
                status = os.stat(os.path.join(directory, name))
            except FileNotFoundError:
                problems.append((str(base / name), "a link that leads nowhere"))
            except OSError as error:
                problems.append((str(base / name), f"cannot be read: {error.strerror}"))
            else:
                if stat.S_ISREG(status.st_mode):
                    found.append((str(base / name), status.st_size, status.st_mtime_ns))
    return sorted(found)
