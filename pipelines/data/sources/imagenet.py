"""ImageNet's (ILSVRC 2012) val images lie in no class folders: their classes, from where they are.

Kaggle has `LOC_val_solution.csv`, with the class of every image by name. The devkit has numbers, in
an order of its own that is not that of the class names: they mean nothing without its `meta.mat`
(or `map_clsloc.txt` of later devkits). Class names stay the wnids (`n01440764`), as the folders and
tars of the training images have them.
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pipelines.data.layout import only_holds, split_of_folder
from pipelines.data.sources.file_list import Files
from pipelines.data.sources.folder_tree import Folder, Tree
from pipelines.data.sources.folder_words import shown
from pipelines.data.sources.source import Tally
from pipelines.errors import UserError

SOLUTION = "LOC_val_solution.csv"
NUMBERS = "ILSVRC2012_validation_ground_truth.txt"
WNIDS = "imagenet_2012_validation_synset_labels.txt"
TINY = "val_annotations.txt"
"""Tiny ImageNet's: name, class and a box of each image, with tabs."""

DEVKIT = "ILSVRC2012_devkit_t12"
ORDERS = ("meta.mat", "map_clsloc.txt")
"""Files with the devkit's order of classes; `LOC_synset_mapping.txt` and `synset_words.txt` are
sorted by wnid and say nothing of it."""

_LISTS = ("synsets.txt", "synset_words.txt", "LOC_synset_mapping.txt")
_DATA_FOLDERS = (".", f"{DEVKIT}/data", DEVKIT, "devkit/data", "data", "devkit")
_LEVELS = 5  # Kaggle's file lies beside ILSVRC/, the images in ILSVRC/Data/CLS-LOC/val/
_LARGEST = 1 << 26  # bytes of any of these files
_LARGEST_DEVKIT = 1 << 29
_ILSVRC_TAR = re.compile(r"ilsvrc2012_img_(train|train_t3|val|test\w*)\.tar|n\d{8}\.tar")
_WNID = re.compile(r"n\d{8}")
_NEEDED = (
    f"put Kaggle's {SOLUTION}, or the devkit ({DEVKIT}.tar.gz, or unpacked: data/{NUMBERS} with "
    "data/meta.mat), beside it"
)


@dataclass(frozen=True)
class GroundTruth:
    """The class of each val image by name without ending, and the file that says so."""

    origin: str
    classes: dict[str, str]


class FlatVal:
    """The classes of val images in no class folders, looked for when the first one is met."""

    def __init__(self, near: Path, where: str, problems: list[tuple[str, str]]) -> None:
        """Of the folder of the images or of their tar, called `where` in reports.

        `problems` get (name, reason) of images that the ground truth does not name.
        """
        self._near, self._where, self._problems = near, where, problems
        self.used = False

    @cached_property
    def truth(self) -> GroundTruth:
        """The ground truth near the images.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        found = find_ground_truth(self._near)
        if found is None:
            raise UserError(
                f"{self._where.rstrip(':')} holds images but no class folders, and their classes "
                f"are not to be found: {_NEEDED}"
            )
        self.used = True
        return found

    def class_of(self, name: str) -> str | None:
        """The class of an image by its name; None, and a problem noted, where none is told."""
        found = self.truth.classes.get(name.rpartition(".")[0])
        if found is None:
            self._problems.append(
                (f"{self._where}{name}", f"no class: it is not in {self.truth.origin}")
            )
        return found

    def notes(self) -> list[str]:
        """What is to be said of the ground truth that was used."""
        where = self._where.rstrip("/:")
        return [f"the classes in {where} are from {self.truth.origin}"] if self.used else []


def is_ilsvrc_tar(path: str) -> bool:
    """Whether a tar is one of ILSVRC's own, by its name."""
    return _ILSVRC_TAR.fullmatch(path.rpartition("/")[2].lower()) is not None


def leave_out_subsets(files: list[str], left_out: Tally) -> list[str]:
    """All tars but that of ILSVRC's third task, whose images are in the large one too."""
    whole, part = "ilsvrc2012_img_train.tar", "ilsvrc2012_img_train_t3.tar"
    names = {file.rpartition("/")[2].lower() for file in files}
    if whole not in names:
        return files
    for file in files:
        if file.lower().endswith(part):
            left_out(file, f"images that {whole} has too")
    return [file for file in files if not file.lower().endswith(part)]


def label_flat_val(root: Path, tree: Tree) -> list[str]:
    """Give the images of a flat `val/` beside `train/CLASS/` class folders in the tree.

    Gives what is to be said of it.

    Raises:
        UserError: it is ILSVRC's and its ground truth is not there, or cannot be read.
    """
    for folder in tree.root.walk():
        sides = {split_of_folder(name): below for name, below in folder.holding.items()}
        val, train = sides.get("val"), sides.get("train")
        if val is not None and train is not None and train.holding and len(val.holding) < 2:
            return label_if_flat(root, val, tree.problems)
    return []


def label_if_flat(root: Path, val: Folder, problems: list[tuple[str, str]]) -> list[str]:
    """`label_flat_val` of one folder, which the user may have named."""
    inner = list(val.holding.values())
    if not val.images and len(inner) == 1 and only_holds(inner[0].path.rpartition("/")[2]):
        val = inner[0]  # val/images/
    if val.holding or not val.images:
        return []
    flat = FlatVal(root / val.path, shown(val), problems)
    is_ilsvrc = any(name.startswith("ILSVRC2012_val_") for name, _, _ in val.images[:8])
    if not is_ilsvrc and find_ground_truth(root / val.path) is None:
        return []  # somebody else's data, for which there are other ways
    images, val.images = val.images, Files()
    for image in images:
        name = flat.class_of(image[0])
        if name is None:
            val.num_images -= 1
            continue
        # Its path stays that of the files, only its place in the tree is a class.
        folder = val.folders.setdefault(name, Folder(val.path, val))
        folder.images.append(image)
        folder.num_images += 1
    return flat.notes()


def find_ground_truth(near: Path) -> GroundTruth | None:
    """The classes of the val images, from a file in a folder, those above it, or a devkit in one.

    Raises:
        UserError: such a file cannot be read, or has numbers whose order of classes is not there.
    """
    for folder in [near, *near.parents][:_LEVELS]:
        if (folder / SOLUTION).is_file():
            return _from_solution(folder / SOLUTION)
        for place in _DATA_FOLDERS:
            if (folder / place / NUMBERS).is_file():
                return _from_devkit(str(folder / place), partial(_read, folder / place))
        archive = folder / f"{DEVKIT}.tar.gz"
        if archive.is_file():
            files = _unpacked(archive)
            return _from_devkit(str(archive), files.get)
        if (folder / TINY).is_file():
            return _from_tiny(folder / TINY)
        if (folder / WNIDS).is_file():
            return _numbered(str(folder / WNIDS), _lines(_read(folder, WNIDS) or b""))
    return None


def _from_solution(path: Path) -> GroundTruth:
    classes: dict[str, str] = {}
    try:
        text = (_read(path.parent, path.name) or b"").decode("utf-8-sig")
        for row in csv.DictReader(io.StringIO(text)):
            told = (row["PredictionString"] or "").split()
            classes[row["ImageId"].strip()] = told[0]
    except (KeyError, IndexError, AttributeError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} is not Kaggle's table of ImageId and PredictionString "
            f"({type(error).__name__}: {error}): download it anew"
        ) from None
    return GroundTruth(str(path), classes)


def _from_tiny(path: Path) -> GroundTruth:
    rows = [line.split("\t") for line in _lines(_read(path.parent, path.name) or b"")]
    wrong = next((row for row in rows if len(row) < 2 or not _WNID.fullmatch(row[1])), None)
    if wrong is not None:
        raise UserError(
            f"{path}: {wrong[0]!r} has no class of ImageNet (n01440764) behind it: download it anew"
        )
    return GroundTruth(str(path), {name.rpartition(".")[0]: wnid for name, wnid, *_ in rows})


def _from_devkit(where: str, read: Callable[[str], bytes | None]) -> GroundTruth:
    """Numbers of classes, one a line, in the order of the images; and what the numbers mean."""
    numbers = _lines(read(NUMBERS) or b"")
    meta, table = (read(name) for name in ORDERS)
    if meta is not None:
        order, used = _meta_order(meta, f"{where}/{ORDERS[0]}"), ORDERS[0]
    elif table is not None:
        order, used = _table_order(_lines(table)), ORDERS[1]
    else:
        order, used = _unsorted_list(where, read)
    wrong = next(
        (n for n in numbers if not n.isascii() or not n.isdigit() or int(n) not in order), None
    )
    if wrong is not None or not numbers:
        raise UserError(
            f"{where}/{NUMBERS}: {wrong or 'nothing'!r} is no number of a class in {used}: "
            f"unpack {DEVKIT}.tar.gz anew"
        )
    return _numbered(f"{where}/{NUMBERS} and {used}", [order[int(n)] for n in numbers])


def _numbered(origin: str, classes: list[str]) -> GroundTruth:
    wrong = next((name for name in classes if not _WNID.fullmatch(name)), None)
    if wrong is not None:
        raise UserError(
            f"{origin}: {wrong!r} is no class of ImageNet (n01440764): download it anew"
        )
    return GroundTruth(
        origin, {f"ILSVRC2012_val_{i:08d}": name for i, name in enumerate(classes, 1)}
    )


def _meta_order(data: bytes, where: str) -> dict[int, str]:
    """Number → wnid, of all synsets in `meta.mat`: the first 1,000 are the classes."""
    import numpy as np
    from scipy.io import loadmat

    try:
        synsets: Any = np.atleast_1d(loadmat(io.BytesIO(data), squeeze_me=True)["synsets"])
        return {
            int(number): str(wnid)
            for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
        }
    except Exception as error:  # SciPy's parser raises what it likes on broken bytes
        raise UserError(
            f"{where} cannot be read ({type(error).__name__}): unpack {DEVKIT}.tar.gz anew"
        ) from None


def _table_order(lines: list[str]) -> dict[int, str]:
    """`n02119789 1 kit_fox`, as later devkits have it."""
    rows = [line.split() for line in lines]
    return {int(r[1]): r[0] for r in rows if len(r) > 1 and r[1].isascii() and r[1].isdigit()}


def _unsorted_list(where: str, read: Callable[[str], bytes | None]) -> tuple[dict[int, str], str]:
    """A list of wnids that is in another order than theirs must be in that of the numbers."""
    for name in _LISTS:
        wnids = [line.split()[0] for line in _lines(read(name) or b"")]
        if wnids and wnids != sorted(wnids):
            return dict(enumerate(wnids, 1)), name
    raise UserError(
        f"{where}/{NUMBERS} has numbers in the devkit's own order of classes: put the devkit's "
        "data/meta.mat beside it (lists sorted by wnid, such as LOC_synset_mapping.txt, are in "
        "another order)"
    )


def _lines(data: bytes) -> list[str]:
    text = data.decode("utf-8-sig", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _read(folder: Path, name: str) -> bytes | None:
    path = folder / name
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", exit_code=1) from None
    if len(data) > _LARGEST:
        raise UserError(f"{path} has more than {_LARGEST:,} bytes: download it anew")
    return data


def _unpacked(archive: Path) -> dict[str, bytes]:
    """The files of the devkit's archive that tell of the val images, by name."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if name in (NUMBERS, *ORDERS) and member.isreg() and member.size <= _LARGEST:
                    content = tar.extractfile(member)
                    found[name] = content.read() if content is not None else b""
                if member.offset > _LARGEST_DEVKIT:
                    break
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise UserError(f"{archive} cannot be read: {reason}: download it anew") from None
    if NUMBERS not in found:
        raise UserError(f"{archive} holds no {NUMBERS}: download it anew")
    return found
