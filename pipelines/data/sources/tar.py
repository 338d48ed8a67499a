"""Tar files read as they are: class folders, a tar of class tars, WebDataset shards.

Nothing is unpacked. One pass over the headers finds where every image lies; units then read ranges
of bytes. A tar is read like the folder it would unpack to (`folder_layout`), with two additions:
the name of a tar may tell a split (`train-0001.tar`), and that of a tar which holds images and no
folders is their class (`n01440764.tar`).
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipelines.data.class_choice import chosen_classes, order_notes
from pipelines.data.layout import Split, foreign, foreign_path, says_nothing, split_of_folder
from pipelines.data.options import PrepareOptions
from pipelines.data.sources.class_doubts import nested_notes
from pipelines.data.sources.folder_layout import find_layout
from pipelines.data.sources.folder_tree import IMAGE_SUFFIXES, Folder, Tree
from pipelines.data.sources.folder_words import shown
from pipelines.data.sources.imagenet import FlatVal, leave_out_subsets
from pipelines.data.sources.shard_names import origin_of, splits_of_paths
from pipelines.data.sources.source import LeftOut, Source, Tally
from pipelines.data.sources.tar_members import COMPRESSED_ENDINGS, Member, scan
from pipelines.data.sources.tar_units import TarImages
from pipelines.data.sources.webdataset import Label, is_webdataset, name_classes, read_shard
from pipelines.errors import UserError

_UNIT = 256
_NOT_CHOSEN = "of classes that were not chosen"

Group = tuple[Split, tuple[str, ...] | Label]
"""What images have in common: their split as far as the tar's name tells it; and their folder, the
tar's name where they are in none, or the label of WebDataset shards."""


@dataclass(frozen=True)
class Tar:
    """A tar file: where it is, and the split it is of, "" where that is told inside."""

    path: Path
    where: str
    split: Split


def tar_source(root: Path, tree: Tree | None, options: PrepareOptions) -> Source:
    """List the images in tars: those of a folder, walked as `tree`, or `root` itself.

    Raises:
        UserError: no images, no labels, or what can be read in two ways.
    """
    left_out = Tally()
    named = options.train_from is not None or options.val_from is not None
    tars = _named_tars(root, options) if named else _tars_of(root, tree, left_out)
    if named and tree is not None:
        taken = {tar.path for tar in tars}
        for file in tree.shards["tar"]:
            if (root / file).resolve() not in taken:
                left_out(file, "tars that neither --train nor --val names")
    reader = _Reader(root, tars, options.label_column, left_out)
    reader.read()
    names, meanings = reader.labelled() if reader.labels else reader.laid_out()
    if len(names) == 1 and options.classes is None:
        raise UserError(
            f"{root} has one class only, {names[0]!r}: give --class {shlex.quote(names[0])} if "
            "that is meant, else --train TAR and --val TAR"
        )
    positions = chosen_classes(names, options.classes, str(root))
    chosen = {position: label for label, position in enumerate(positions)}
    meanings = [(split, chosen.get(label, -1)) for split, label in meanings]
    reader.count_others(meanings)
    stats = [os.stat(tar.path) for tar in tars]
    places = [
        (tar.path, tar.where, f"{stat.st_size} {stat.st_mtime_ns}")
        for tar, stat in zip(tars, stats, strict=True)
    ]
    return Source(
        str(root),
        [names[position] for position in positions],
        reader.images.units(places, meanings, _UNIT),
        problems=(tree.problems if tree is not None else []) + reader.problems,
        origins=reader.origins(),
        left_out=(_beside(tree) if tree is not None else []) + left_out.told() + reader.not_taken,
        notes=reader.notes + order_notes(names),
    )


def refuse_compressed(root: Path) -> None:
    """Say of a folder in which nothing else was found that its tars are compressed.

    Raises:
        UserError: they are.
    """
    found = sorted(p.name for p in root.iterdir() if p.name.lower().endswith(COMPRESSED_ENDINGS))
    if found:
        raise UserError(
            f"{root} holds compressed tars, as {found[0]}, which cannot be read in places: unpack "
            "them to plain .tar files (gunzip, bunzip2, unxz, unzstd)"
        )


def _beside(tree: Tree) -> list[LeftOut]:
    """What lies beside the tars."""
    found = list(tree.left_out)
    if tree.root.num_images:
        first = next(folder for folder in tree.root.walk() if folder.images)
        found.append(LeftOut("images beside the tars", tree.root.num_images, first.path, ""))
    if others := tree.shards["parquet"]:
        found.append(LeftOut("Parquet beside the tars", len(others), others[0]))
    return found


def _tars_of(root: Path, tree: Tree | None, left_out: Tally) -> list[Tar]:
    """The tars of a folder with the splits that their names tell, train first; tests left out."""
    if tree is None:
        return [Tar(root, root.name, "")]  # only names below the source tell a split
    files = leave_out_subsets(tree.shards["tar"], left_out)
    splits = splits_of_paths(str(root), files)
    for file in files:
        if splits[file] == "test":
            left_out(file, "tars of the test split")
    if splits and not {"train", ""} & set(splits.values()):
        only = " and ".join(sorted(set(splits.values())))
        refuse_compressed(root)
        raise UserError(
            f"{root} has tars of {only} but none of train: put those of train beside them, or name "
            "them with --train (and --val), or one tar as SOURCE to have it divided"
        )
    tars = [Tar(root / file, file, splits[file]) for file in files if splits[file] != "test"]
    return sorted(tars, key=lambda tar: (tar.split == "val", tar.where))


def _named_tars(root: Path, options: PrepareOptions) -> list[Tar]:
    """The tars that `--train` and `--val` name, or that lie in the folders they name."""
    tars: list[Tar] = []
    given: tuple[tuple[Split, str | None], ...] = (
        ("train", options.train_from),
        ("val", options.val_from),
    )
    for split, name in given:
        if name is None:
            continue
        path = next((p.resolve() for p in (root / name, Path(name)) if p.exists()), None)
        below = [path] if path is not None and path.is_file() else []
        if path is not None and path.is_dir():
            below = sorted(
                p
                for p in path.rglob("*.tar")
                if p.is_file() and not foreign_path(str(p.relative_to(path)))
            )
        if not below:
            raise UserError(f"--{split} {name}: there is no tar in {root}, nor from here")
        tars += [
            Tar(p, str(p.relative_to(root) if p.is_relative_to(root) else p), split) for p in below
        ]
    if not any(tar.split == "train" for tar in tars):
        raise UserError(f"--val names the tars of val: name those of train by --train, in {root}")
    return tars


class _Reader:
    """Reads all tars of a source and finds out what their images are."""

    def __init__(
        self, root: Path, tars: list[Tar], label_field: str | None, left_out: Tally
    ) -> None:
        self._root, self._tars, self._field = root, tars, label_field
        self.left_out = left_out
        self.images = TarImages()
        self.groups: dict[Group, int] = {}
        self.labels: dict[Label, str] = {}
        self.problems: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.not_taken: list[LeftOut] = []
        self._roots: dict[str, list[str]] = {}
        self._with_folders: set[str] = set()  # tars
        self._told: set[int] = set()  # groups in no class folder, which are counted already

    def read(self) -> None:
        """Read all headers, and WebDataset's labels."""
        labelled = self._are_labelled()
        for number, tar in enumerate(self._tars):
            start = len(self.images)
            found = self._labelled(tar) if labelled else self._plain(tar)
            for group, member in found:
                index = self.groups.setdefault(group, len(self.groups))
                self.images.add(number, index, member)
            for path in self.images.drop_older(start):
                self.left_out(f"{tar.where}:{path}", "replaced by a later file of the same name")
        if not len(self.images):
            first_problem = next((f"{name} {reason}" for name, reason in self.problems), "")
            raise UserError(first_problem or f"{self._root} holds no images in its tar files")

    def _are_labelled(self) -> bool:
        """Whether labels lie beside the images, by the first tar of each split that tells."""
        for split in dict.fromkeys(tar.split for tar in self._tars):
            kinds = (is_webdataset(t.path, self._field) for t in self._tars if t.split == split)
            if next((kind for kind in kinds if kind is not None), False):
                return True
        return False

    def _labelled(self, tar: Tar) -> Iterator[tuple[Group, Member]]:
        for label, member in read_shard(
            tar.path, tar.where, self._field, self.left_out, self.problems
        ):
            self.labels.setdefault(label, tar.where)
            yield (tar.split, label), member

    def _plain(self, tar: Tar) -> Iterator[tuple[Group, Member]]:
        flat_val = FlatVal(tar.path.parent, f"{tar.where}:", self.problems)
        before, inside, foreign_folder = "", tuple[str, ...](), ""
        for member in scan(tar.path, tar.where, self.left_out, self.problems):
            folder, _, name = member.path.rpartition("/")
            if folder != before:
                before, foreign_folder = folder, foreign_path(folder)
                inside = tuple(folder.split("/")) if folder else ()
            suffix = os.path.splitext(name)[1].lower()
            why = foreign_folder or foreign(name)
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
            folders = inside
            if folders:
                self._with_folders.add(tar.where)
            elif tar.split == "val" and not self._alone(tar.where):
                class_name = flat_val.class_of(name)
                if class_name is None:
                    continue
                folders = (class_name,)
            yield (tar.split, folders or tar.where), member
        self.notes += flat_val.notes()

    def laid_out(self) -> tuple[list[str], list[tuple[str, int]]]:
        """(class names, (split, label) of each group) of class folders; −1 is no class."""
        tree = Folder("")
        places: list[Folder] = []
        counts = self.images.counts(len(self.groups))
        for (split, folders), index in self.groups.items():
            below = folders if isinstance(folders, tuple) else self._alone(str(folders))
            folder = tree
            for name in (str(split), *below) if split else below:
                path = f"{folder.path}/{name}" if folder.path else name
                folder = folder.folders.setdefault(name, Folder(path, folder))
            first = self.images.first(index).rpartition("/")[2]
            folder.images = [*folder.images, *[(first, 0, 0)] * counts[index]]
            above: Folder | None = folder
            while above is not None:
                above.num_images += counts[index]
                above = above.parent
            places.append(folder)
        try:
            layout = find_layout(tree, str(self._root))
        except UserError as error:
            raise UserError(f"{error} (unpack the tars first: there options name tars)") from None
        names = layout.names()
        labels = {name: label for label, name in enumerate(names)}
        found: dict[int, tuple[str, int]] = {}
        for said, classes in layout.classes.items():
            for name, folder in classes.items():
                found |= {id(inner): (said, labels[name]) for inner in folder.walk()}
        self._roots = {said: [shown(f) for f in roots] for said, roots in layout.roots.items()}
        self.notes += layout.notes + nested_notes(layout.classes)
        self.not_taken = layout.not_taken([tree])
        self._told = {i for i, folder in enumerate(places) if id(folder) not in found}
        return names, [found.get(id(folder), ("", -1)) for folder in places]

    def _alone(self, where: str) -> tuple[str, ...]:
        """The folders of images that lie in none: the tar itself, if it is a class's."""
        stem = PurePosixPath(where).stem
        if where in self._with_folders or split_of_folder(stem) or says_nothing(stem):
            return ()
        return (stem,)

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
            self.not_taken.append(LeftOut(_NOT_CHOSEN, total, first, "images"))

    def origins(self) -> dict[str, list[str]]:
        """The tars, or folders in them, that each split comes from."""
        by_name: dict[str, list[str]] = {}
        for tar in self._tars:
            by_name.setdefault(tar.split, []).append(tar.where)
        told = {split: origin_of(files) for split, files in by_name.items()}
        if set(told) != {""} or set(self._roots) <= {""}:
            return told
        return {
            split: [f"{told[''][0]}: {r}" for r in roots] for split, roots in self._roots.items()
        }
