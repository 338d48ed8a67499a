"""Folders that lie where classes do and may be something else: parts, domains, image folders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from pipelines.data.layout import are_parts, only_holds, says_nothing
from pipelines.data.names import printable
from pipelines.data.sources.folder_tree import Folder, class_root
from pipelines.data.sources.folder_words import argument, joined, labels_option, shown
from pipelines.errors import UserError

_SHARED = 2  # folders of the same names in two others: those may be the classes


def refuse_doubtful(top: Folder, where: str, tables: Sequence[str]) -> None:
    """Refuse to take the folders in `top` for classes where their names speak against it.

    Raises:
        UserError: the message has the options that settle it.
    """
    folders = list(top.holding.values())
    if len(folders) < 2:
        return
    flat = f"{labels_option(tables)} if a table has the classes"
    as_classes = f"--train {argument(top)} if {joined(map(shown, folders))} are classes"
    if are_parts(top.holding):
        raise UserError(
            f"{where}: {joined(map(shown, folders))} look like parts: give {flat}, or {as_classes}"
        )
    if holders := [folder for name, folder in top.holding.items() if only_holds(name)]:
        inside = f"--train {argument(holders[0])} if its folders are, {flat}"
        raise UserError(
            f"{where}: {shown(holders[0])} lies beside other folders of images and is hardly a "
            f"class: give {inside if holders[0].holding else flat}, or {as_classes}"
        )
    if alike := _alike([*folders, top]):
        first, second, shared = alike
        raise UserError(
            f"{where}: {shown(first)} and {shown(second)} hold folders of the same names "
            f"({joined(map(printable, shared))}), which may be the classes: give --train "
            f"{argument(first)} for those of one folder, or {as_classes}"
        )


def _alike(folders: Iterable[Folder]) -> tuple[Folder, Folder, list[str]] | None:
    """Two folders with folders of the same names in them, and these names."""
    owners: dict[str, Folder] = {}
    for folder in folders:
        inside = {name for name in class_root(folder).holding if not says_nothing(name)}
        if len(inside) < _SHARED:
            continue
        shared = defaultdict(list)
        for name in sorted(inside):
            owner = owners.setdefault(name, folder)
            if owner is not folder:
                shared[owner.path].append(name)
        for names in shared.values():
            if len(names) >= _SHARED:
                return owners[names[0]], folder, names
    return None


def nested_notes(classes: dict[str, dict[str, Folder]]) -> list[str]:
    """What to say of classes (by split and name) with folders that might have been the classes."""
    with_folders = [
        (folder, name)
        for split in classes.values()
        for folder in split.values()
        for name in folder.holding
        if not says_nothing(name)
    ]
    if not with_folders:
        return []
    folder, name = with_folders[0]
    return [
        f"classes hold folders, whose images count as theirs: {printable(folder.path)}/"
        f"{printable(name)}"
    ]
