"""Tar files read as they are: class folders, a tar of class tars, WebDataset shards.

Nothing is unpacked. One pass over the headers finds where every image lies; units then read ranges
of bytes. A tar is read like the folder it would unpack to (`folder_layout`), with two additions:
the name of a tar may tell a split (`train-0001.tar`), and that of a tar which holds images and no
folders is their class (`n01440764.tar`).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.data.class_choice import chosen_classes
from pipelines.data.layout import Split, foreign_path, says_nothing, split_of_folder
from pipelines.data.sources.base import Source, Tally
from pipelines.data.sources.folder_layout import find_layout, shown
from pipelines.data.sources.folder_tree import IMAGE_SUFFIXES, Folder
from pipelines.data.sources.imagenet import FlatVal, leave_out_subsets
from pipelines.data.sources.shard_names import origin_of, splits_of_paths
from pipelines.data.sources.tar_members import Member, scan
from pipelines.data.sources.tar_units import TarImages
from pipelines.data.sources.webdataset import Label, is_webdataset, name_classes, read_shard
from pipelines.errors import UserError

_UNIT = 256

Group = tuple[Split, tuple[str, ...] | Label]
"""What images have in common: their split as far as the tar's name tells it, and their folder, or
the label of WebDataset shards."""


@dataclass(frozen=True)
class Tar:
    """A tar file: where it is, and the split it is of, "" where that is told inside."""

    path: Path
    where: str
    split: Split


def tars_of(root: Path, files: list[str], left_out: Tally) -> list[Tar]:
    """The tars of a folder with the splits that their names tell, train first; tests left out.

    Args:
        root: the folder, or the one tar itself.
        files: paths below it, [""] for the tar itself.
        left_out: counts the tars of test splits.

    Raises:
        UserError: some names tell of train or val, and others of none.
    """
    files = leave_out_subsets(files, left_out)
    splits = splits_of_paths(str(root), [file or root.name for file in files])
    tars = []
    for file in files:
        split = splits[file or root.name]
        if split == "test":
            left_out(file, "tars of the test split")
        else:
            tars.append(Tar(root / file if file else root, file or root.name, split))
    return sorted(tars, key=lambda tar: (tar.split == "val", tar.where))


def tar_source(
    root: Path, tars: list[Tar], classes: int | list[str] | None, label_field: str | None = None
) -> Source:
    """List the images in tars.

    Args:
        root: the source, for messages.
        tars: from `tars_of`, or as the user named them.
        classes: the first so many classes by name, or the named ones; None: all.
        label_field: the field of WebDataset's JSON with the label; None: see `webdataset`.

    Raises:
        UserError: no images, no labels, or what can be read in two ways.
    """
    reader = _Reader(root, tars, label_field)
    reader.read()
    names, meanings = reader.labelled() if reader.labels else reader.laid_out()
    chosen = {position: i for i, position in enumerate(chosen_classes(names, classes, str(root)))}
    meanings = [(split, chosen.get(label, -1)) for split, label in meanings]
    reader.count_others(meanings)
    stats = [os.stat(tar.path) for tar in tars]
    places = [
        (tar.path.resolve(), tar.where, f"{stat.st_size} {stat.st_mtime_ns}")
        for tar, stat in zip(tars, stats, strict=True)
    ]
    return Source(
        str(root),
        [names[position] for position in chosen],
        reader.images.units(places, meanings, _UNIT),
        problems=reader.problems,
        origins=reader.origins(),
        left_out=reader.left_out.told(),
        notes=reader.notes,
    )


class _Reader:
    """Reads all tars of a source and finds out what their images are."""

    def __init__(self, root: Path, tars: list[Tar], label_field: str | None) -> None:
        self._root, self._tars, self._field = root, tars, label_field
        self.images = TarImages()
        self.groups: dict[Group, int] = {}
        self.labels: dict[Label, str] = {}
        self.problems: list[tuple[str, str]] = []
        self.left_out = Tally()
        self.notes: list[str] = []
        self._roots: dict[str, list[str]] = {}
        self._told: set[int] = set()  # groups in no class folder, which are counted already

    def read(self) -> None:
        """Read all headers, and WebDataset's labels."""
        first = {tar.split: tar for tar in reversed(self._tars)}
        labelled = any(is_webdataset(tar.path) for tar in first.values())
        for number, tar in enumerate(self._tars):
            found = self._labelled(tar) if labelled else self._plain(tar)
            for group, member in found:
                index = self.groups.setdefault(group, len(self.groups))
                self.images.add(number, index, member)
        if not len(self.images):
            first_problem = next((f"{name} {reason}" for name, reason in self.problems), "")
            raise UserError(first_problem or f"{self._root} holds no images in its tar files")

    def _labelled(self, tar: Tar) -> Iterator[tuple[Group, Member]]:
        for label, member in read_shard(
            tar.path, tar.where, self._field, self.left_out, self.problems
        ):
            self.labels.setdefault(label, tar.where)
            yield (tar.split, label), member

    def _plain(self, tar: Tar) -> Iterator[tuple[Group, Member]]:
        flat_val = FlatVal(tar.path.parent, f"{tar.where}:", self.problems)
        stem = Path(tar.where).stem
        alone = () if split_of_folder(stem) or says_nothing(stem) else (stem,)
        for member in scan(tar.path, tar.where, self.left_out, self.problems):
            folder, _, name = member.path.rpartition("/")
            suffix = os.path.splitext(name)[1].lower()
            why = foreign_path(member.path)
            if suffix == ".cls":
                raise UserError(
                    f"{tar.where} holds .cls labels, as WebDataset shards do, but the tars before "
                    "it do not: put them into a folder of their own"
                )
            if not why and suffix not in IMAGE_SUFFIXES:
                why = f"no images ({suffix or 'no ending'})"
            if why:
                self.left_out(f"{tar.where}:{member.path}", why)
                continue
            folders = tuple(folder.split("/")) if folder else alone
            if not folders and tar.split == "val":
                class_name = flat_val.class_of(name)
                if class_name is None:
                    continue
                folders = (class_name,)
            yield (tar.split, folders), member
        self.notes += flat_val.notes()

    def laid_out(self) -> tuple[list[str], list[tuple[str, int]]]:
        """(class names, (split, label) of each group) of class folders; −1 is no class."""
        tree = Folder("")
        places: list[Folder] = []
        counts = self.images.counts(len(self.groups))
        for (split, folders), index in self.groups.items():
            assert isinstance(folders, tuple)
            folder = tree
            for name in (str(split), *folders) if split else folders:
                path = f"{folder.path}/{name}" if folder.path else str(name)
                folder = folder.folders.setdefault(name, Folder(path, folder))
            first = self.images.first(index).rpartition("/")[2]
            folder.images += [(first, 0, 0)] * counts[index]
            above: Folder | None = folder
            while above is not None:
                above.num_images += counts[index]
                above = above.parent
            places.append(folder)
        layout = find_layout(tree, str(self._root))
        names = layout.names()
        found: dict[int, tuple[str, int]] = {}
        for split, classes in layout.classes.items():
            for name, folder in classes.items():
                found |= {id(below): (split, names.index(name)) for below in folder.walk()}
        self._roots = {split: [shown(f) for f in roots] for split, roots in layout.roots.items()}
        self.notes += layout.notes
        for entry in layout.not_taken([tree]):
            self.left_out(entry.first, entry.reason, entry.count)
        self._told = {i for i, folder in enumerate(places) if id(folder) not in found}
        return names, [found.get(id(folder), ("", -1)) for folder in places]

    def labelled(self) -> tuple[list[str], list[tuple[str, int]]]:
        """(class names, (split, label) of each group) of WebDataset shards."""
        folders = list(
            dict.fromkeys(
                above
                for tar in self._tars
                for above in (tar.path.parent, *tar.path.parent.parents)
                if above == self._root.parent or above.is_relative_to(self._root)
            )
        )
        names, note = name_classes(self.labels, folders, str(self._root))
        self.notes.append(note)
        position = {name: i for i, name in enumerate(names)}
        return names, [
            (split, label if isinstance(label, int) else position[str(label)])
            for split, label in self.groups
        ]

    def count_others(self, meanings: list[tuple[str, int]]) -> None:
        """Count the images of classes that were not chosen."""
        counts = self.images.counts(len(self.groups))
        of_others = [
            i for i, (_, label) in enumerate(meanings) if label < 0 and i not in self._told
        ]
        if total := sum(counts[i] for i in of_others):
            first = self.images.first(of_others[0])
            self.left_out(first, "images of classes that were not chosen", total)

    def origins(self) -> dict[str, list[str]]:
        """The tars, or folders in them, that each split comes from."""
        by_name: dict[str, list[str]] = {}
        for tar in self._tars:
            by_name.setdefault(tar.split, []).append(tar.where)
        told = {split: origin_of(files) for split, files in by_name.items()}
        if set(told) != {""} or not self._roots:
            return told
        return {
            split: [f"{told[''][0]}: {r}" for r in roots] for split, roots in self._roots.items()
        }
