"""Random folder trees: never a traceback, never another label or split than an oracle gives.

The oracle knows nothing of the program's: it works on the list of the images' paths, and what a
name means stands in its own table.
"""

import itertools
import tempfile
from collections import defaultdict
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import rehearse
from pipelines.errors import UserError

from .folders import opened, picture

SPLITS = {
    "train": "train", "Training": "train", "seg_train": "train", "train_set": "train",
    "val": "val", "Validation": "val", "dev": "val",
    "test": "test", "TEST": "test", "testing": "test",
}  # fmt: skip
USUAL = [
    ["train", "val"], ["Training", "Validation", "TEST"], ["seg_train", "test"], ["train_set"],
    ["train", "dev"], ["train", "test", "testing"],
]  # fmt: skip
CLASSES = ["cat", "dog", "1", "10", "2", "steam_train", "contest", "images", "caf\udce9", "a\nb"]
NAMELESS = {"1", "10", "2", "images"}  # they say nothing of what is in them
FOREIGN = ["__MACOSX", ".hidden", "@eaDir", "lost+found"]
FILES = ["0.png", "1.PNG", "noending", "x.txt", "caf\udce9.png", "a\nb.png"]
OTHERS = ["notes.txt", "Thumbs.db", "._0.png", "labels.json"]

Path_ = tuple[str, ...]
Meaning = dict[Path_, tuple[str, str]]


class Oracle:
    """What a tree of these images means: {path: (class, split)}, or None if it must be refused."""

    def __init__(self, images: list[Path_]) -> None:
        self.images = [path for path in images if not any(part in FOREIGN for part in path)]

    def meaning(self) -> Meaning | None:
        top: Path_ = ()
        while (name := self.only(top)) is not None and name not in SPLITS:
            top = (*top, name)
        names = self.within(top)
        speaking = [name for name in names if name in SPLITS]
        if not speaking:
            if any(n in SPLITS for name in names for n in self.within((*top, name))):
                found = self.class_first(top)
            else:
                found = None if self.doubtful(top) else self.classes(top, "")
        elif len(speaking) == 1 and len(names) > 1 and not self.within((*top, speaking[0])):
            as_classes = SPLITS[speaking[0]] == "train" and not self.doubtful(top)
            found = self.classes(top, "") if as_classes else None
        else:
            found = self.split_first(top)
        if found is None or len({name for name, _ in found.values()}) < 2:
            return None
        of = defaultdict(set)
        for name, split in found.values():
            of[split].add(name)
        return None if "val" in of and not of["train"] & of["val"] else found

    def split_first(self, top: Path_) -> Meaning | None:
        by = defaultdict(list)
        for name in self.within(top):
            by[SPLITS.get(name, "")].append((*top, name))
        if len(by["train"]) != 1 or len(by["val"]) > 1:
            return None
        roots = {split: self.deepest(by[split][0]) for split in ("train", "val") if by[split]}
        for root in roots.values():
            names = self.within(root)
            speaking = [name for name in names if name in SPLITS]
            as_class = (
                len(speaking) == 1 and len(names) > 1 and not self.within((*root, speaking[0]))
            )
            if not names or (speaking and not as_class) or self.doubtful(root):
                return None
        common = set(self.within(roots["train"]))
        vouched = [*by["val"], *by["test"]]
        if by[""] and not any(common & set(self.within(self.deepest(path))) for path in vouched):
            return None
        found: Meaning = {}
        for split, root in roots.items():
            found |= self.classes(root, split)
        return found

    def doubtful(self, root: Path_) -> bool:
        """Whether `images` lies beside others, or two folders hold two of the same names."""
        names = self.within(root)
        places = [root, *(self.deepest((*root, name)) for name in names)]
        inner = [set(self.within(place)) - NAMELESS for place in places]
        alike = any(len(a & b) > 1 for a, b in itertools.combinations(inner, 2))
        return len(names) > 1 and ("images" in names or alike)

    def class_first(self, top: Path_) -> Meaning | None:
        found: Meaning = {}
        for name in self.within(top):
            inner = self.within((*top, name))
            kinds = [SPLITS.get(n) for n in inner]
            if (
                None in kinds or kinds.count("train") != 1 or kinds.count("val") > 1
                or self.directly((*top, name)) or any(self.within((*top, name, n)) for n in inner)
            ):  # fmt: skip
                return None
            for n, kind in zip(inner, kinds, strict=True):
                if kind != "test":
                    found |= {p: (name, str(kind)) for p in self.below((*top, name, n))}
        return found

    def classes(self, root: Path_, split: str) -> Meaning:
        return {
            path: (name, split) for name in self.within(root) for path in self.below((*root, name))
        }

    def deepest(self, path: Path_) -> Path_:
        while (name := self.only(path)) is not None:
            path = (*path, name)
        return path

    def only(self, path: Path_) -> str | None:
        names = self.within(path)
        if self.directly(path) or len(names) != 1 or self.directly((*path, names[0])):
            return None
        inner = (*path, names[0])
        return names[0] if len(self.within(inner)) > 1 or self.only(inner) is not None else None

    def below(self, prefix: Path_) -> list[Path_]:
        return [path for path in self.images if path[: len(prefix)] == prefix]

    def within(self, prefix: Path_) -> list[str]:
        deep = (path for path in self.below(prefix) if len(path) > len(prefix) + 1)
        return sorted({path[len(prefix)] for path in deep})

    def directly(self, prefix: Path_) -> bool:
        return any(len(path) == len(prefix) + 1 for path in self.below(prefix))


def some(items: list[str], least: int, most: int) -> st.SearchStrategy[list[str]]:
    """A few different ones."""
    picked = st.lists(st.sampled_from(items), min_size=least, max_size=most)
    return picked.map(lambda names: list(dict.fromkeys(names)))


names = st.sampled_from([*SPLITS, *SPLITS, *CLASSES, *CLASSES, *FOREIGN])
anywhere = st.lists(names, max_size=4).map(tuple)


@st.composite
def trees(draw: st.DrawFn) -> list[Path_]:
    """Folders, either as data sets have them, with some that disturb, or any."""
    kind = draw(st.sampled_from(["splits", "splits", "classes", "class first", "any"]))
    wrapper = draw(st.sampled_from([(), (), (), ("images",), ("dog", "images")]))
    folders: list[Path_] = []
    if kind == "any":
        folders = draw(st.lists(anywhere, min_size=1, max_size=8))
    else:
        classes = draw(some(CLASSES, 2, 5))
        splits = draw(st.sampled_from(USUAL) | some(list(SPLITS), 1, 3))
        if kind == "classes":
            folders = [(*wrapper, name) for name in classes]
        elif kind == "splits":
            folders = [(*wrapper, split, name) for split in splits for name in classes]
        else:
            folders = [(*wrapper, name, split) for split in splits for name in classes]
        if draw(st.integers(0, 3)) == 0:
            folders += draw(st.lists(anywhere, max_size=2))
    return list(dict.fromkeys(folders))


def check(folders: list[Path_], files: list[list[str]], others: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "train"  # names above the source say nothing
        root.mkdir()
        images: list[Path_] = []
        for folder, inside, beside in zip(folders, files, others, strict=True):
            root.joinpath(*folder).mkdir(parents=True, exist_ok=True)
            for name in inside:
                images.append((*folder, name))
                root.joinpath(*folder, name).write_bytes(picture(len(images)))
            for name in beside:
                root.joinpath(*folder, name).write_bytes(b"no picture")
        expected = Oracle(images).meaning()
        refusal, samples = "", {}
        try:
            source, samples = opened(root)
        except UserError as error:
            refusal = str(error)
        if expected is None:
            assert refusal and "\n" not in refusal
            return
        assert {PurePosixPath(n).parts: m for n, m in samples.items()} == expected, refusal
        # Every image is either taken or counted.
        missing = sum(entry.count for entry in source.left_out if entry.unit == "images")
        assert missing + len(samples) == len(Oracle(images).images)
        told = rehearsed(root, samples)
        assert "\n" not in told


def rehearsed(root: Path, samples: dict[str, tuple[str, str]]) -> str:
    """What a dry run refuses, if it does; the splits it counts must be those listed."""
    try:
        summary, why = rehearse(str(root), PrepareOptions(workers=1))
    except UserError as error:
        return str(error)
    assert sum(part.images for part in summary.splits.values()) == len(samples)
    listed = sum(split == "val" for _, split in samples.values())
    assert not listed or summary.splits["val"].images == listed
    return why


def fuzz(number: int):
    @settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        folders = data.draw(trees())
        files = [data.draw(some(FILES, int(i % 4 > 0), 2)) for i in range(len(folders))]
        check(folders, files, [data.draw(some(OTHERS, 0, 1)) for _ in folders])

    run()


def test_random_trees():
    fuzz(150)


@pytest.mark.slow  # 2,000 trees, each listed, read and checked as `prepare --dry-run` does
def test_many_random_trees():
    fuzz(2_000)
