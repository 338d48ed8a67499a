"""ImageNet as it is downloaded: whatever the form, every image has the class that is its own.

The wnids are in another order than their numbers in the devkit: sorted by name, the first is not 1.
"""

import io
import json
import os
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.io import savemat

from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare
from pipelines.data.sources import imagenet
from pipelines.errors import UserError

from .conftest import jpeg, photo
from .folders import make, opened
from .tar_made import all_true, left_out, open_made, put, said, taken, tar_bytes

WNIDS = ["n02119789", "n01440764", "n02100735"]  # in the devkit's order: 1, 2, 3
VAL = ["n01440764", "n02100735", "n02119789", "n01440764"]  # the classes of val 1 to 4


def train_files() -> dict[str, bytes]:
    return {f"{w}/{w}_{i}.JPEG": said("train", w, i) for w in sorted(WNIDS) for i in (36, 1002)}


def val_files() -> dict[str, bytes]:
    return {f"ILSVRC2012_val_{i:08d}.JPEG": said("val", w, i) for i, w in enumerate(VAL, 1)}


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def folders(root: Path) -> Path:
    """`train/` of class folders and a flat `val/`."""
    write(root / "train", train_files())
    return write(root / "val", val_files()).absolute()


def tars(root: Path) -> Path:
    """The two files of the download."""
    by_class = {w: [] for w in sorted(WNIDS)}
    for name, data in train_files().items():
        by_class[name.split("/")[0]].append((name.split("/")[1], data))
    inner = [(f"{w}.tar", tar_bytes(files)) for w, files in by_class.items()]
    put(root / "ILSVRC2012_img_train.tar", inner)
    return put(root / "ILSVRC2012_img_val.tar", val_files().items())


def solution() -> bytes:
    """Kaggle's table, in no particular order, with several boxes for one image."""
    rows = [f"ILSVRC2012_val_{i:08d},{w} 1 2 30 40 {w} 5 6 7 8 " for i, w in enumerate(VAL, 1)]
    return "\n".join(["ImageId,PredictionString", *rows[::-1]]).encode()


def numbers() -> bytes:
    return "".join(f"{WNIDS.index(w) + 1}\n" for w in VAL).encode()


def meta() -> bytes:
    """`meta.mat` as the devkit has it: leaves first, then nodes with any number of children."""
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children"]
    synsets = np.zeros((len(WNIDS) + 1, 1), [(field, object) for field in fields])
    for i, wnid in enumerate([*WNIDS, "n00001740"]):
        children = np.array([1.0, 2.0]) if i == len(WNIDS) else np.array([])
        synsets[i, 0] = (float(i + 1), wnid, "words, more", "gloss", float(len(children)), children)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    return buffer.getvalue()


def table() -> bytes:
    return "".join(f"{w} {i} name_{i}\n" for i, w in enumerate(WNIDS, 1)).encode()


def sorted_list() -> bytes:
    return "".join(f"{w} tench, Tinca tinca\n" for w in sorted(WNIDS)).encode()


def devkit(folder: str, order: str = "meta.mat") -> dict[str, bytes]:
    content = {"meta.mat": meta(), "map_clsloc.txt": table(), "synset_words.txt": table()}[order]
    return {f"{folder}{imagenet.NUMBERS}": numbers(), f"{folder}{order}": content}


def archive(*leave: str) -> bytes:
    """`ILSVRC2012_devkit_t12.tar.gz`."""
    files = {
        f"{imagenet.DEVKIT}/readme.txt": b"read me",
        **devkit(f"{imagenet.DEVKIT}/data/"),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            if name.rpartition("/")[2] not in leave:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


# Each is a neighbour: the places and forms in which people have the ground truth.
TRUTHS = {
    "Kaggle's table beside": {"LOC_val_solution.csv": solution()},
    "Kaggle's table above": {"../../LOC_val_solution.csv": solution()},
    "the same with a mark and returns": {
        "LOC_val_solution.csv": b"\xef\xbb\xbf" + solution().replace(b"\n", b"\r\n")
    },
    "the devkit unpacked": devkit(f"{imagenet.DEVKIT}/data/"),
    "the devkit unpacked above": devkit(f"../{imagenet.DEVKIT}/data/"),
    "its two files alone": devkit(""),
    "a later devkit's table": devkit("data/", "map_clsloc.txt"),
    "a list that is not sorted": devkit("", "synset_words.txt"),
    "the devkit unread": {f"{imagenet.DEVKIT}.tar.gz": archive()},
    "a list of wnids": {imagenet.WNIDS: "\n".join(VAL).encode()},
}


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("form", [folders, tars])
def test_ground_truth_from_wherever_it_is(form, truth, tmp_path):
    root = tmp_path / "a" / "b"
    form(root)
    write(root, TRUTHS[truth])
    source = open_made(root)
    assert all_true(source) and len(taken(source)) == 10 and not source.problems
    assert source.classes == sorted(WNIDS)
    file = next(iter(TRUTHS[truth])).rpartition("/")[2]
    assert any(file in note for note in source.notes)  # which file was used is said


def test_kaggles_folders(tmp_path):
    """Everything at its place in Kaggle's archive, from each level one may name."""
    data = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    folders(data)
    write(data / "test", {"ILSVRC2012_test_00000001.JPEG": said("test", "?")})
    sets = "".join(f"ILSVRC2012_val_{i:08d} {i}\n" for i in range(1, 5)).encode()  # no labels
    write(tmp_path / "ILSVRC", {"ImageSets/CLS-LOC/val.txt": sets, "Annotations/x.xml": b"<x/>"})
    write(tmp_path, {"LOC_val_solution.csv": solution(), "LOC_synset_mapping.txt": sorted_list()})
    for root in (tmp_path, tmp_path / "ILSVRC", data):
        source = open_made(root)
        assert all_true(source) and len(taken(source)) == 10
        assert any("test" in reason for reason in left_out(source))


def test_class_tars_of_an_outer_tar_that_was_unpacked(tmp_path):
    for w in WNIDS:
        put(tmp_path / "train" / f"{w}.tar", [(f"{w}_{i}.JPEG", said("train", w)) for i in (1, 2)])
    put(tmp_path / "val" / "ILSVRC2012_img_val.tar", val_files().items())
    write(tmp_path, {"LOC_val_solution.csv": solution()})
    source = open_made(tmp_path)
    assert all_true(source) and len(taken(source)) == 10


def test_the_tars_may_stay_beside_what_was_unpacked_from_them(tmp_path):
    """As torchvision leaves them."""
    folders(tmp_path)
    tars(tmp_path)
    write(tmp_path, {f"{imagenet.DEVKIT}.tar.gz": archive()})
    source = open_made(tmp_path)
    assert all_true(source) and len(taken(source)) == 10
    assert open_made(tmp_path, source="tar").origins["train"] == ["ILSVRC2012_img_train.tar"]


def test_the_tar_of_the_third_task_is_not_read_twice(tmp_path):
    tars(tmp_path)
    write(tmp_path, {"LOC_val_solution.csv": solution()})
    put(tmp_path / "ILSVRC2012_img_train_t3.tar", [("n02085620.tar", tar_bytes([("1.JPEG", b"")]))])
    put(tmp_path / "ILSVRC2012_img_test_v10102019.tar", [("test/1.JPEG", b"")])
    source = open_made(tmp_path)
    assert all_true(source) and len(taken(source)) == 10
    assert left_out(source) == {
        "images that ilsvrc2012_img_train.tar has too": 1,
        "tars of the test split": 1,
        "no images (.csv)": 1,
    }


@pytest.mark.parametrize("form", [folders, tars])
@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "no class folders.* LOC_val_solution.csv, or the devkit"),
        ({imagenet.NUMBERS: numbers()}, "own order of classes: put the devkit's data/meta.mat"),
        (
            {imagenet.NUMBERS: numbers(), "LOC_synset_mapping.txt": sorted_list()},
            "lists sorted by wnid",
        ),
        ({imagenet.NUMBERS: b"9\n", "meta.mat": meta()}, "'9' is no number of a class"),
        ({imagenet.NUMBERS: b"\xff\n", "meta.mat": meta()}, "is no number of a class"),
        ({imagenet.NUMBERS: b"", "meta.mat": meta()}, "'nothing' is no number"),
        ({imagenet.NUMBERS: numbers(), "meta.mat": os.urandom(300)}, "meta.mat cannot be read"),
        ({imagenet.NUMBERS: numbers(), "meta.mat": meta()[:200]}, "meta.mat cannot be read"),
        ({f"{imagenet.DEVKIT}.tar.gz": archive()[:90]}, "cannot be read"),
        ({f"{imagenet.DEVKIT}.tar.gz": b"<html>"}, "cannot be read"),
        ({f"{imagenet.DEVKIT}.tar.gz": archive(imagenet.NUMBERS)}, "holds no ILSVRC2012_valid"),
        ({f"{imagenet.DEVKIT}.tar.gz": archive("meta.mat")}, "put the devkit's data/meta.mat"),
        ({"LOC_val_solution.csv": b"a,b\n1,2\n"}, "not Kaggle's table"),
        ({"LOC_val_solution.csv": b"ImageId,PredictionString\nx,\n"}, "not Kaggle's table"),
        ({"LOC_val_solution.csv": b"\xff\xfe\0"}, "not Kaggle's table"),
        ({imagenet.WNIDS: b"tench\n"}, "'tench' is no class of ImageNet"),
    ],
)
def test_without_usable_ground_truth_it_is_refused_in_one_line(form, files, told, tmp_path):
    form(tmp_path / "s")
    write(tmp_path / "s", files)
    with pytest.raises(UserError, match=told) as caught:
        open_made(tmp_path / "s")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", [folders, tars])
def test_images_that_the_ground_truth_does_not_name_are_problems(form, tmp_path):
    form(tmp_path)
    lines = solution().split(b"\n")
    write(tmp_path, {"LOC_val_solution.csv": b"\n".join(lines[:-1])})  # 1 is the last row
    source = open_made(tmp_path)
    [(name, reason)] = source.problems
    assert "ILSVRC2012_val_00000001.JPEG" in name and reason.startswith("no class")
    assert all_true(source) and len(taken(source)) == 9


def test_a_part_of_val_is_enough(tmp_path):
    """The numbers are by the names' own, not by the order in which the files are found."""
    folders(tmp_path)
    for i in (1, 3):
        (tmp_path / "val" / f"ILSVRC2012_val_{i:08d}.JPEG").unlink()
    write(tmp_path, devkit(""))
    assert all_true(open_made(tmp_path))


def test_a_flat_val_that_an_option_names(tmp_path):
    """Below the source and elsewhere, under names that say nothing."""
    folders(tmp_path / "a")
    (tmp_path / "a" / "val").rename(tmp_path / "a" / "fifty")
    write(tmp_path / "a", {"LOC_val_solution.csv": solution()})
    for given in ("fifty", str(tmp_path / "b" / "fifty")):
        source = open_made(tmp_path / "a", train_from="train", val_from=given)
        assert all_true(source) and len(taken(source)) == 10
        (tmp_path / "b").mkdir(exist_ok=True)
        if (tmp_path / "a" / "fifty").is_dir():
            (tmp_path / "a" / "fifty").rename(tmp_path / "b" / "fifty")
            write(tmp_path / "b", {"LOC_val_solution.csv": solution()})


# --- the same images in every form -----------------------------------------------------------


def pictures() -> list[tuple[str, str, bytes]]:
    """(split, class, JPEG) in the order in which the folders have them."""
    train = [
        ("train", w, jpeg(photo(97 * i + j))) for i, w in enumerate(sorted(WNIDS)) for j in range(8)
    ]
    return train + [("val", w, jpeg(photo(5000 + i))) for i, w in enumerate(VAL * 2)]


def as_folders(root: Path) -> None:
    for i, (split, wnid, data) in enumerate(pictures()):
        flat = f"ILSVRC2012_val_{i - 23:08d}.JPEG"
        write(root / split, {flat if split == "val" else f"{wnid}/{wnid}_{i:03d}.JPEG": data})


def as_tars(root: Path) -> None:
    inner = {w: [] for w in sorted(WNIDS)}
    val = []
    for i, (split, wnid, data) in enumerate(pictures()):
        if split == "train":
            inner[wnid].append((f"{wnid}_{i:03d}.JPEG", data))
        else:
            val.append((f"ILSVRC2012_val_{i - 23:08d}.JPEG", data))
    files = [(f"{wnid}.tar", tar_bytes(found)) for wnid, found in inner.items()]
    put(root / "ILSVRC2012_img_train.tar", files)
    put(root / "ILSVRC2012_img_val.tar", val)


def as_shards(root: Path) -> None:
    for split in ("train", "val"):
        mine = [(w, data) for s, w, data in pictures() if s == split]
        files = [
            member
            for i, (w, data) in enumerate(mine)
            for member in (
                (f"{i:05d}.jpg", data),
                (f"{i:05d}.cls", str(sorted(WNIDS).index(w)).encode()),
            )
        ]
        put(root / f"imagenet-{split}-000.tar", files)
    write(root, {"classes.txt": "\n".join(sorted(WNIDS)).encode()})


def as_parquet(
    root: Path, train: int = 5, images: list[tuple[str, str, bytes]] | None = None
) -> None:
    """The hub's shards, by name and columns."""
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": sorted(WNIDS)},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for split, name, shards in (("train", "train", train), ("val", "validation", 14)):
        mine = [(w, data) for s, w, data in images or pictures() if s == split]
        bounds = np.linspace(0, len(mine), shards + 1).astype(int)
        for shard, (start, end) in enumerate(pairwise(bounds.tolist())):
            rows = mine[start:end]
            table = pa.table(
                {
                    "image": pa.array(
                        [{"bytes": data, "path": None} for _, data in rows],
                        pa.struct({"bytes": pa.binary(), "path": pa.string()}),
                    ),
                    "label": pa.array([sorted(WNIDS).index(w) for w, _ in rows], pa.int64()),
                }
            ).replace_schema_metadata(metadata)
            path = root / "data" / f"{name}-{shard:05d}-of-{shards:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path)


@pytest.fixture(scope="module")
def indices(tmp_path_factory) -> dict[str, list[tuple[object, ...]]]:
    """The index of each form: split, place in it, label, digest of the source's bytes."""
    found = {}
    for form in (as_folders, as_tars, as_shards, as_parquet):
        place = tmp_path_factory.mktemp(form.__name__)
        form(place / "s")
        if form in (as_folders, as_tars):
            table = {f"ILSVRC2012_val_{i:08d}": w for i, w in enumerate(VAL * 2, 1)}
            rows = [f"{name},{w} 1 2 3 4" for name, w in table.items()]
            write(
                place,
                {"LOC_val_solution.csv": "\n".join(["ImageId,PredictionString", *rows]).encode()},
            )
        out = place / "out"
        prepare(str(place / "s"), out, PrepareOptions(workers=1, minival=0.25))
        rows = pq.read_table(out / "index.parquet").to_pylist()
        columns = ("split", "position", "label", "class", "source_sha1")
        found[form.__name__] = [tuple(row[column] for column in columns) for row in rows]
        # A flat val is read class by class in folders, and image by image in the others.
        found[form.__name__].sort(
            key=lambda row: (row[0] == "val", row[1] if row[0] != "val" else 0, row[4])
        )
        found[form.__name__] = [
            row[:1] + row[2:] if row[0] == "val" else row for row in found[form.__name__]
        ]
    return found


@pytest.mark.parametrize("form", ["as_tars", "as_shards", "as_parquet"])
def test_every_form_of_the_same_images_has_the_same_index(indices, form):
    assert len(indices["as_folders"]) == 32
    assert indices[form] == indices["as_folders"]


def test_294_shards_of_the_hub(tmp_path):
    """`data/train-00000-of-00294.parquet`, each read by itself."""
    images = [
        (split, wnid, said(split, wnid, i))
        for split, count in (("train", 300), ("val", 15))
        for i in range(count)
        for wnid in sorted(WNIDS)
    ]
    as_parquet(tmp_path, 294, images)
    source = open_made(tmp_path)
    assert all_true(source) and len(taken(source)) == 945 and source.classes == sorted(WNIDS)
    [train], [val] = source.origins["train"], source.origins["val"]
    assert train == "data/train-00000-of-00294.parquet … train-00293-of-00294.parquet (294)"
    assert val == "data/validation-00000-of-00014.parquet … validation-00013-of-00014.parquet (14)"


def test_tiny_imagenet(tmp_path):
    """A neighbour of the flat val: its images lie in a folder more, its table is another."""
    wnids = ["n01443537", "n01629819"]
    make(tmp_path, *(f"train/{wnid}/images" for wnid in wnids))
    make(tmp_path, "val/images", "test/images", count=4)
    table = tmp_path / "val/val_annotations.txt"
    rows = [f"{i}.png\t{wnids[i % 2]}\t0\t0\t9\t9\n" for i in range(4)]
    table.write_text("".join(rows))
    _, samples = opened(tmp_path)
    val = {name: label for name, (label, split) in samples.items() if split == "val"}
    assert val == {f"val/images/{i}.png": wnids[i % 2] for i in range(4)}
    assert sum(split == "train" for _, split in samples.values()) == 4
    table.write_text("0.png n01443537\n")
    with pytest.raises(UserError, match=r"0\.png n01443537.*download it anew"):
        opened(tmp_path)
