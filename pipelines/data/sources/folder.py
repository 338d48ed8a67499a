"""A directory of class folders: `train/CLASS/…` and `val/CLASS/…`, `CLASS/…` alone, and kin."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.data.class_choice import chosen_classes, order_notes
from pipelines.data.names import printable
from pipelines.data.options import PrepareOptions
from pipelines.data.sources.class_doubts import nested_notes
from pipelines.data.sources.file_list import Labelled, LabelledFiles, MadeWhenAsked
from pipelines.data.sources.folder_layout import Layout, find_layout, given_layout
from pipelines.data.sources.folder_tree import Folder, Tree, scan
from pipelines.data.sources.folder_words import labels_option, shown
from pipelines.data.sources.imagenet import label_flat_val, label_if_flat
from pipelines.data.sources.source import LeftOut, Sample, Source
from pipelines.errors import UserError
from pipelines.storage.hashes import text_hash

_UNIT = 256
_SMALLEST_UNIT = 32


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
        return len(self.entries)

    def read(self) -> Iterator[Sample]:
        for split, label, relative in self.entries:
            data, error = b"", ""
            try:
                data = Path(self.root, relative).read_bytes()
            except OSError as problem:
                error = f"cannot be read: {problem.strerror}"
            yield Sample(relative, split, label, data, error)


def folder_source(root: Path, options: PrepareOptions, tree: Tree) -> Source:
    """List a directory of class folders, which was scanned as `tree`.

    The folders of train and val may be named, below `root` or on their own; else their names tell.

    Raises:
        UserError: no class folders, what can be read in two ways, or a named class is not there.
    """
    root = root.resolve()
    where = printable(root)
    classes, train, val = options.classes, options.train_from, options.val_from
    trees, top = [tree], tree.root
    notes = label_flat_val(root, tree)
    if train is None and val is None:
        layout = find_layout(top, where, tree.tables)
    else:
        train_folder, val_folder = (
            None if given is None else folder_at(root, given, option, trees)
            for given, option in ((train, "--train"), (val, "--val"))
        )
        if val_folder is not None:
            notes += label_if_flat(root, val_folder, tree.problems)
        layout = given_layout(top, train_folder, val_folder, where, tree.tables)
    if layout.tests and "val" not in layout.classes:
        test = shlex.quote(printable(layout.tests[0].path))
        layout.notes.append(f"val is taken out of train; --val {test} would take the test split")
    found = layout.names()
    if len(found) == 1 and classes is None:
        place = shown(next(iter(layout.roots.values()))[0])
        raise UserError(
            f"{where} has one class only, {printable(found[0])!r} in {place}: give --class "
            f"{shlex.quote(printable(found[0]))} if that is meant, else --train DIR and --val DIR, "
            f"or a table of labels ({labels_option(tree.tables)})"
        )
    chosen = [found[i] for i in chosen_classes(found, classes, where)]
    problems = [problem for part in trees for problem in part.problems]
    files = LabelledFiles()
    for split, folders in layout.classes.items():
        for label, name in enumerate(chosen):
            mine = folders[name].files() if name in folders else []
            if not mine:
                missing = f"{layout.roots[split][0].path}/{name}".lstrip("/")
                problems.append((missing, no_images(name, split or "train")))
            for file in mine:
                files.append((split, label, file))
    return Source(
        str(root),
        chosen,
        FolderUnits(root, files),
        problems=problems,
        origins={split: [shown(f) for f in folders] for split, folders in layout.roots.items()},
        left_out=_left_out(layout, set(chosen), trees),
        notes=notes + layout.notes + nested_notes(layout.classes) + order_notes(found),
    )


def folder_at(root: Path, given: str, option: str, trees: list[Tree]) -> Folder:
    """The folder that an option names, which is walked if it lies elsewhere.

    Raises:
        UserError: it is not there.
    """
    path = next((p.resolve() for p in (root / given, Path(given)) if p.is_dir()), None)
    if path is None:
        raise UserError(
            f"{option} {printable(given)}: no such folder in {printable(root)}, nor from here"
        )
    if path.is_relative_to(root):
        parts = path.relative_to(root).parts
        folder: Folder | None = trees[0].root
        for part in parts:
            folder = folder.folders.get(part) if folder is not None else None
        if folder is not None:
            return folder
    trees.append(scan(path, beside=True))
    return trees[-1].root


def _left_out(layout: Layout, chosen: set[str], trees: list[Tree]) -> list[LeftOut]:
    """All that is not taken, whatever the reason."""
    others = [
        folder
        for folders in layout.classes.values()
        for name, folder in sorted(folders.items())
        if name not in chosen
    ]
    of_others = sum(folder.num_images for folder in others)
    tops = {id(top): top for tree in trees for top in (tree.root, *layout.roots.get("val", []))}
    found = [entry for tree in trees for entry in tree.left_out]
    found += layout.not_taken([top for top in tops.values() if top.parent is None])
    if of_others:
        found.append(
            LeftOut("of classes that were not chosen", of_others, others[0].path, "images")
        )
    empty = [
        folder.path
        for roots in layout.roots.values()
        for root in roots
        for name, folder in sorted(root.folders.items())
        if not folder.num_images and not any(name in names for names in layout.classes.values())
    ]
    if empty:
        found.append(LeftOut("without an image", len(empty), empty[0], "folders"))
    return found


class FolderUnits(MadeWhenAsked[FolderUnit]):
    """Files dealt out to units, in order."""

    def __init__(self, root: Path, files: Sequence[Labelled]) -> None:
        """`files` have paths relative to `root`."""
        self._root, self._files = str(root), files
        self._bounds = unit_bounds(len(files))

    def __len__(self) -> int:
        return len(self._bounds)

    def _item(self, index: int) -> FolderUnit:
        start, end = self._bounds[index]
        mine = self._files[start:end]
        entries = tuple((split, label, path) for split, label, (path, _, _) in mine)
        status = repr([(size, modified) for _, _, (_, size, modified) in mine])
        return FolderUnit(self._root, entries, text_hash(status, 16))


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
