"""An ImageNet-style directory: `train/CLASS/…` and `val/CLASS/…`, or `CLASS/…` alone."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.data.sources.base import Sample, Source
from pipelines.errors import UserError

_UNIT = 256
_VAL_NAMES = ("val", "valid", "validation")


@dataclass(frozen=True)
class FolderUnit:
    """Some files below `root`: (split, label, path relative to root)."""

    root: str
    entries: tuple[tuple[str, int, str], ...]

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
    for split, folder in folders.items():
        for label, name in enumerate(chosen):
            files = _files(folder / name, root, problems) if name in listed[split] else []
            if not files:
                where = folder.relative_to(root)
                problems.append((str(where / name), f"class {name} has no images in {where}"))
            entries += [(split, label, file) for file in files]
    units = [
        FolderUnit(str(root), tuple(entries[start : start + _UNIT]))
        for start in range(0, len(entries), _UNIT)
    ]
    return Source(str(root), chosen, units, problems=problems)


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


def _files(folder: Path, root: Path, problems: list[tuple[str, str]]) -> list[str]:
    """Paths relative to root of the regular files below a folder, sorted."""

    def report(error: OSError) -> None:
        where = Path(error.filename or folder)
        problems.append((str(where.relative_to(root)), f"cannot be read: {error.strerror}"))

    found: list[str] = []
    for directory, _, names in os.walk(folder, onerror=report):
        base = Path(directory).relative_to(root)
        for name in names:
            if name.startswith("."):
                continue
            if Path(directory, name).is_file():
                found.append(str(base / name))
            elif Path(directory, name).is_symlink():
                problems.append((str(base / name), "a link that leads nowhere"))
    return sorted(found)
