"""Which folders of a tree are splits and which are classes: decided once, or refused.

Only names and where the images lie count, never how many there are. `docs/data.md` has a table of
what is taken for what, and of what is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipelines.data.layout import Split, split_of_folder, splits_of_folders
from pipelines.data.names import printable
from pipelines.data.sources.class_doubts import refuse_doubtful
from pipelines.data.sources.folder_tree import Folder, class_root, wrapped
from pipelines.data.sources.folder_words import argument, joined, labels_option, shown
from pipelines.data.sources.source import LeftOut
from pipelines.errors import UserError


@dataclass
class Layout:
    """`classes[split][name]` is a class's folder in a split: "train", "val", or "" for neither.

    `roots[split]` are the folders that were taken for the split, `tests` those of test splits.
    """

    classes: dict[str, dict[str, Folder]]
    roots: dict[str, list[Folder]]
    tests: list[Folder] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        """All classes, in the order of their numbers: by name as text, as torchvision has it."""
        return sorted(set().union(*self.classes.values()))

    def not_taken(self, trees: Iterable[Folder]) -> list[LeftOut]:
        """The images of `trees` that are in no class's folder, by reason."""
        taken = {id(folder) for split in self.classes.values() for folder in split.values()}
        tests = {id(folder) for folder in self.tests}
        counts: Counter[str] = Counter()
        first: dict[str, str] = {}
        waiting = [(tree, "") for tree in trees]
        while waiting:
            folder, test = waiting.pop()
            if id(folder) in taken:
                continue
            if id(folder) in tests:
                test = shown(folder)
            why = f"of the test split {test}" if test else "outside the class folders"
            if folder.images:
                counts[why] += len(folder.images)
                first.setdefault(why, "/".join(filter(None, (folder.path, folder.images[0][0]))))
            waiting += [(below, test) for _, below in sorted(folder.folders.items(), reverse=True)]
        return [LeftOut(why, count, first[why], "images") for why, count in counts.items()]


def given_layout(
    tree: Folder, train: Folder | None, val: Folder | None, where: str, tables: Sequence[str] = ()
) -> Layout:
    """The layout where the user names the folder of train, of val, or both.

    Without train it is what `find_layout` makes of the rest; without val a folder beside `train`
    that is called so, if there is one. `where` and `tables` (CSV files) are for messages.
    """
    if val is not None and train is None:
        _take_out(val)
        rest = find_layout(tree, where, tables)
        classes = rest.classes.get("train") or rest.classes.get("") or {}
        layout = Layout({"train": classes}, {"train": rest.roots.get("train") or [tree]})
        layout.tests, layout.notes = rest.tests, rest.notes
    else:
        assert train is not None  # the caller gives at least one
        around = _speaking(train.parent or tree)
        if val is None:
            beside = around["val"] or _speaking(tree)["val"]
            beside = [folder for folder in beside if not _within(train, folder)]
            val = beside[0] if len(beside) == 1 and not _within(beside[0], train) else None
        elif _within(train, val):
            _take_out(val)
        layout = Layout({"train": dict(train.holding)}, {"train": [train]})
        layout.tests = [f for f in around["test"] if not _within(train, f)]
    if val is not None:
        layout.classes["val"], layout.roots["val"] = dict(class_root(val).holding), [val]
    _check_common(layout, where)
    return layout


def find_layout(tree: Folder, where: str, tables: Sequence[str] = ()) -> Layout:
    """What the folders' names say; `where` and `tables` (CSV files) are for messages.

    Raises:
        UserError: no class folders, one class only, or what can be read in two ways; the message
            has the option that settles it.
    """
    top = tree
    while (inner := wrapped(top)) is not None and not split_of_folder(
        inner.path.rpartition("/")[2]
    ):
        top = inner
    speaking = _speaking(top)
    if not _any_split(speaking):
        layout = _class_first(top, where) or _flat(top, where, tables)
    elif (named := _class_called_so(top)) is not None:
        if named not in speaking["train"]:
            raise UserError(
                f"{where}: {shown(named)} lies beside class folders and holds images: give "
                f"--train {argument(top)} if it is a class too, with --class for each of the "
                "others if it is not"
            )
        layout = _flat(top, where, tables)
        layout.notes.append(f"{shown(named)} is taken for a class, as are the folders beside it")
    else:
        layout = _splits_first(top, speaking, where, tables)
    _check_common(layout, where)
    return layout


def _splits_first(
    top: Folder, speaking: dict[Split, list[Folder]], where: str, tables: Sequence[str]
) -> Layout:
    """train/CLASS, with val/CLASS or without."""
    for named in ("train", "val"):
        if len(speaking[named]) > 1:
            raise UserError(
                f"{where} has {_list(speaking[named])}, which may all be {named}: "
                f"say which by --train DIR and --val DIR, or give --train {argument(top)} if all "
                "are classes"
            )
    if not speaking["train"]:
        found = _list([*speaking["val"], *speaking["test"]])
        raise UserError(
            f"{where} has {found} but no folder of training images: name it by --train DIR "
            f"(and --val DIR), or give --train {argument(top)} if all folders are classes"
        )
    roots = {"train": class_root(speaking["train"][0])}
    if speaking["val"]:
        roots["val"] = class_root(speaking["val"][0])
    for split, root in roots.items():
        if not root.holding:
            classes = f", or --train {argument(top)} if it is a class" if split == "train" else ""
            raise UserError(
                f"{where}: {shown(root)} holds {root.num_images} images but no class folders: "
                f"make them, or give {labels_option(tables)} or another --{split} DIR{classes}"
            )
        _check_no_splits_within(root, where)
        refuse_doubtful(root, where, tables)
    common = set(roots["train"].holding)
    others = _speaking(top)[""]
    confirmed = [*speaking["val"], *speaking["test"]]
    if others and not any(common & set(class_root(folder).holding) for folder in confirmed):
        train = speaking["train"][0]
        raise UserError(
            f"{where}: {shown(train)} holds class folders, yet lies beside "
            f"{_list(others)}: give --train {argument(train)} if it is the training "
            f"split, or --train {argument(top)} if all are classes"
        )
    classes_in = {split: dict(root.holding) for split, root in roots.items()}
    return Layout(classes_in, {split: [root] for split, root in roots.items()}, speaking["test"])


def _class_first(top: Folder, where: str) -> Layout | None:
    """CLASS/train and CLASS/val; None where no class has such folders."""
    inner = {name: _speaking(folder) for name, folder in top.holding.items()}
    with_splits = [name for name, found in inner.items() if _any_split(found)]
    if not with_splits:
        return None
    layout = Layout({"train": {}, "val": {}}, {"train": [], "val": []})
    for name, folder in top.holding.items():
        speaking = inner[name]
        deep = any(f.holding for f in folder.holding.values())
        once = all(len(speaking[split]) <= 1 for split in ("train", "val"))
        if not speaking["train"] or not once or speaking[""] or deep or folder.images:
            raise UserError(
                f"{where}: {shown(top.holding[with_splits[0]])} holds folders called like splits; "
                "give --train DIR and --val DIR, or "
                f"--train {argument(top)} if the folders are classes all the same"
            )
        for split in ("train", "val"):
            if speaking[split]:
                layout.classes[split][name] = speaking[split][0]
                layout.roots[split].append(speaking[split][0])
        layout.tests += speaking["test"]
    if not layout.classes["val"]:
        del layout.classes["val"], layout.roots["val"]
    return layout


def _flat(top: Folder, where: str, tables: Sequence[str]) -> Layout:
    """CLASS/IMAGE, split by the seed."""
    if not top.holding:
        raise UserError(
            f"{where} has no class folders"
            + (f", only {top.num_images} images" if top.num_images else "")
            + ": expected train/CLASS/IMAGE (and val/CLASS/IMAGE), CLASS/IMAGE, or a table of "
            f"labels ({labels_option(tables)})"
        )
    refuse_doubtful(top, where, tables)
    return Layout({"": dict(top.holding)}, {"": [top]})


def _check_no_splits_within(root: Folder, where: str) -> None:
    if _any_split(_speaking(root)) and _class_called_so(root) is None:
        raise UserError(
            f"{where}: {shown(root)} holds {_list(list(root.holding.values()))}, which may be "
            "splits or classes: give --train DIR and --val DIR, or "
            f"--train {argument(root)} if they are classes"
        )


def _class_called_so(top: Folder) -> Folder | None:
    """The single folder called like a split that lies among classes as one of them."""
    speaking = _speaking(top)
    named = [*speaking["train"], *speaking["val"], *speaking["test"]]
    alone = len(named) == 1 and len(top.holding) > 1 and not named[0].holding
    return named[0] if alone else None


def _check_common(layout: Layout, where: str) -> None:
    """Train and val without one class in common are something else."""
    train, val = (set(layout.classes.get(split, ())) for split in ("train", "val"))
    if "val" in layout.classes and not train & val:
        raise UserError(
            f"{where}: train and val have no class in common: "
            f"{_some(train)} in {_list(layout.roots['train'])}, "
            f"{_some(val)} in {_list(layout.roots['val'])}: name other folders by --train DIR and "
            "--val DIR, or call those of one class alike"
        )


def _speaking(top: Folder) -> dict[Split, list[Folder]]:
    """The folders with images in `top`, by the split that they are called like ("": none)."""
    found: dict[Split, list[Folder]] = {"train": [], "val": [], "test": [], "": []}
    splits = splits_of_folders(top.holding)
    for name, folder in top.holding.items():
        found[splits.get(name, "")].append(folder)
    return found


def _any_split(speaking: dict[Split, list[Folder]]) -> bool:
    return any(folders for split, folders in speaking.items() if split)


def _take_out(folder: Folder) -> None:
    """Take a folder out of the tree above it, so that its images count there no more."""
    above = folder.parent
    if above is not None:
        above.folders = {name: f for name, f in above.folders.items() if f is not folder}
    while above is not None:
        above.num_images -= folder.num_images
        above = above.parent
    folder.parent = None


def _within(outer: Folder, inner: Folder | None) -> bool:
    while inner is not None:
        if inner is outer:
            return True
        inner = inner.parent
    return False


def _list(folders: list[Folder]) -> str:
    return joined(shown(folder) for folder in folders)


def _some(names: Iterable[str]) -> str:
    return joined(printable(name) for name in sorted(names)) or "none"
