"""Tars as sources: every sample has the split and class that its own bytes name."""

import io
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data import parallel
from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare
from pipelines.data.sources import tar as module
from pipelines.data.sources import tar_units
from pipelines.data.sources.folder import folder_source
from pipelines.data.sources.folder_tree import scan
from pipelines.errors import UserError

from .conftest import jpeg, photo
from .tar_made import all_true, class_files, left_out, open_made, put, said, taken, tar_bytes

BOTH = {("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")}


def kinds(source) -> set[tuple[str, str]]:
    return {(split, name) for split, name, _ in taken(source)}


def inner(split: str, name: str, folder: str = "") -> tuple[str, bytes]:
    """A class tar inside a tar."""
    files = [(f"{folder}{name}_{i}.JPEG", said(split, name, i)) for i in range(2)]
    return f"{name}.tar", tar_bytes(files)


# Each is a neighbour of the others: the same four folders, packed as people pack them.
LAYOUTS = {
    "one tar, splits inside": {
        "x.tar": class_files("train", "ab", under="train/") + class_files("val", "ab", under="val/")
    },
    "one tar, splits below folders that mean nothing": {
        "x.tar": class_files("train", "ab", under="./photos/Training/")
        + class_files("val", "ab", under="./photos/validation/")
    },
    "a tar a split": {
        "train.tar": class_files("train", "ab"),
        "val.tar": class_files("val", "ab"),
    },
    "a tar a split, which its folders say again": {
        "my_train.tar": class_files("train", "ab", under="train/"),
        "my_valid.tar": class_files("val", "ab", under="my/"),
    },
    "several tars a split": {
        "photos-train-000.tar": class_files("train", "a"),
        "photos-train-001.tar": class_files("train", "b"),
        "photos-val-000.tar": class_files("val", "ab"),
    },
    "folders of class tars": {
        f"{split}/{c}.tar": [(f"{c}_{i}.jpg", said(split, c, i)) for i in range(2)]
        for split in ("train", "val")
        for c in "ab"
    },
    "class tars whose files lie in the class's folder again": {
        f"{split}/{c}.tar": class_files(split, c) for split in ("train", "val") for c in "ab"
    },
    "tars of class tars": {
        "train.tar": [inner("train", "a"), inner("train", "b")],
        "val.tar": [inner("val", "a"), inner("val", "b", "b/")],
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path):
    for name, files in LAYOUTS[layout].items():
        put(tmp_path / "s" / name, files)
    source = open_made(tmp_path / "s")
    assert all_true(source) and kinds(source) == BOTH and source.classes == ["a", "b"]
    assert set(source.origins) == {"train", "val"} and not source.problems and not source.left_out


@pytest.mark.parametrize("name", ["photos.tar", "train.tar", "val/x.tar", "test/test.tar"])
def test_a_tar_is_a_source_by_itself_whatever_it_is_called(name, tmp_path):
    """Names tell splits below the source only, as those of Parquet files do."""
    source = open_made(put(tmp_path / name, class_files("", "abc")))
    assert source.classes == ["a", "b", "c"] and {split for split, *_ in taken(source)} == {""}
    assert source.origins == {"": [name.rpartition("/")[2]]}


@pytest.mark.parametrize("test", ["test.tar", "test/x.tar", "img_test_v1.tar"])
def test_test_tars_are_left_out_and_said(test, tmp_path):
    put(tmp_path / "train.tar", class_files("train", "ab"))
    put(tmp_path / test, class_files("test", "ab"))
    source = open_made(tmp_path)
    assert all_true(source) and left_out(source) == {"tars of the test split": 1}


def test_test_folders_in_a_tar_are_left_out_and_counted(tmp_path):
    files = class_files("train", "ab", under="train/") + class_files("test", "ab", under="test/")
    source = open_made(put(tmp_path / "x.tar", files))
    assert all_true(source) and left_out(source) == {"of the test split test/": 4}


def test_what_is_no_image_is_counted_by_reason(tmp_path):
    odd = ["a/._0.jpg", ".hidden/0.jpg", "__MACOSX/a/0.jpg", "a/Thumbs.db", "notes.txt", "a/x"]
    files = [*class_files("", "ab"), *((name, b"x") for name in odd)]
    source = open_made(put(tmp_path / "x.tar", files))
    assert len(taken(source)) == 4
    assert left_out(source) == {
        "hidden": 2,
        "left by a system or program": 2,
        "no images (.txt)": 1,
        "no images (no ending)": 1,
    }


def test_of_files_of_one_name_the_last_counts_as_in_unpacking(tmp_path):
    """`tar -r` puts a changed file behind the old one."""
    files = [("a/0.jpg", b" a old"), *class_files("", "ab"), ("b/1.jpg", b" b new")]
    source = open_made(put(tmp_path / "x.tar", files))
    assert [text for *_, text in taken(source)] == [" a 0", " a 1", " b 0", " b new"]
    assert left_out(source) == {"replaced by a later file of the same name": 2}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_bytes_tars_have_nothing_but_a_line_comes_of_it(tmp_path_factory, data):
    place = tmp_path_factory.mktemp("bytes")
    shards = [m for i in range(3) for m in ((f"{i}.jpg", said(i)), (f"{i}.json", b'{"label": 1}'))]
    for name, files in (("train-0.tar", shards), ("train-1.tar", [inner("", "a")])):
        whole = bytearray(tar_bytes(files))
        for _ in range(data.draw(st.integers(0, 4))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        put(place / name, []).write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    refusal = ""
    try:
        source = open_made(place)
    except UserError as error:
        refusal, units, count = str(error), [], 0
    else:
        units, count = source.units, len(source.classes)
    assert "\n" not in refusal
    samples = [sample for unit in units for sample in unit.read()]
    assert all(not sample.error and 0 <= sample.label < count for sample in samples)


def test_what_lies_beside_tars_is_said(tmp_path):
    put(tmp_path / "train.tar", class_files("train", "ab"))
    for name in ("notes.txt", "a/1.jpg", "b/2.jpg", ".hidden.tar", "x.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert left_out(open_made(tmp_path, source="tar")) == {
        "no images (.txt)": 1,
        "hidden": 1,
        "images beside the tars": 2,
        "Parquet beside the tars": 1,
    }


def test_a_compressed_tar_beside_that_of_val_is_named(tmp_path):
    put(tmp_path / "val.tar", class_files("val", "ab"))
    (tmp_path / "train.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"compressed tars, as train\.tar\.gz"):
        open_made(tmp_path)


def test_options_name_the_tars(tmp_path):
    put(tmp_path / "s" / "one.tar", class_files("train", "ab"))
    put(tmp_path / "s" / "two.tar", class_files("val", "ab"))
    put(tmp_path / "elsewhere" / "three.tar", class_files("val", "ab"))
    put(tmp_path / "s" / "four.tar", class_files("?", "ab"))
    given = {"train_from": "one.tar", "val_from": "two.tar"}
    source = open_made(tmp_path / "s", **given)
    assert kinds(source) == BOTH and all_true(source)
    assert left_out(source) == {"tars that neither --train nor --val names": 1}
    given["val_from"] = str(tmp_path / "elsewhere")  # a folder of tars, and not below the source
    source = open_made(tmp_path / "s", **given)
    assert kinds(source) == BOTH and all_true(source)
    with pytest.raises(UserError, match=r"--train none.tar: there is no tar"):
        open_made(tmp_path / "s", train_from="none.tar")


def test_classes_are_chosen_by_name_and_number(tmp_path):
    path = put(tmp_path / "x.tar", class_files("", "abc"))
    assert kinds(open_made(path, classes=2)) == {("", "a"), ("", "b")}
    chosen = open_made(path, classes=["c", "a"])
    assert chosen.classes == ["a", "c"] and kinds(chosen) == {("", "a"), ("", "c")}
    assert left_out(chosen) == {"of classes that were not chosen": 2}


@pytest.mark.parametrize(
    ("tars", "told"),
    [
        ({"x.tar": [("1.jpg", b"x"), ("2.jpg", b"x")]}, "one class only, 'x'"),
        ({"shard-000.tar": [("1.jpg", b"x")], "shard-001.tar": [("2.jpg", b"x")]}, "no class f"),
        ({"a.tar": class_files("", "ab"), "train.tar": class_files("", "ab")}, "tells no split"),
        ({"val.tar": class_files("", "ab")}, "none of train"),
        ({"train/val.tar": class_files("", "ab")}, "speaks of train and val at once"),
        ({"x.tar": class_files("", "a")}, "one class only"),
        ({"x.tar": [("readme.txt", b"x")]}, "no images"),
        ({"x.tar": class_files("", "ab"), "p.parquet": []}, "--source"),
        ({"x.tar.gz": []}, "compressed"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_in_one_line(tars, told, tmp_path):
    for name, files in tars.items():
        put(tmp_path / name, files)
    with pytest.raises(UserError, match=told) as caught:
        open_made(tmp_path)
    assert "\n" not in str(caught.value)


def test_broken_tars_are_refused_by_name_and_skipped_with_the_option(tmp_path):
    put(tmp_path / "s" / "train" / "a.tar", [(f"{i}.jpg", jpeg(photo(i))) for i in range(4)])
    put(tmp_path / "s" / "train" / "b.tar", [(f"{i}.jpg", jpeg(photo(9 + i))) for i in range(4)])
    whole = put(
        tmp_path / "s" / "train" / "c.tar", [(f"{i}.jpg", jpeg(photo(i))) for i in (21, 22)]
    )
    whole.write_bytes(whole.read_bytes()[:2500])
    options = PrepareOptions(workers=1, minival=0, val=0.25)
    with pytest.raises(UserError, match=r"train/c.tar: is cut short"):
        prepare(str(tmp_path / "s"), tmp_path / "out", options)
    manifest = prepare(
        str(tmp_path / "s"), tmp_path / "out", options.model_copy(update={"skip_bad": True})
    )
    assert sum(split.samples for split in manifest.splits.values()) == 8 + 1  # what lies before


def test_names_of_any_bytes_are_taken(tmp_path):
    files = [(f"{c}/{i}.jpg", jpeg(photo(10 * i + ord(c)))) for c in "ab" for i in range(4)]
    data = tar_bytes(files).replace(b"a/0.jpg", b"a/\xff.jpg").replace(b"b/1.jpg", b"b/\n.jpg")
    # The checksums of the two headers that were changed:
    blocks = [bytearray(data[i : i + 512]) for i in range(0, len(data), 512)]
    for block in blocks:
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "x.tar").write_bytes(b"".join(blocks))
    out = tmp_path / "out"
    prepare(str(tmp_path / "x.tar"), out, PrepareOptions(workers=1))
    names = pq.read_table(out / "index.parquet")["source_name"].to_pylist()
    assert len(names) == 8 and "x.tar:a/\\xff.jpg" in names and "x.tar:b/\n.jpg" in names


NAME = st.sampled_from(["cat", "dog", "train", "val", "test", "images", "n01", "x"])
TREE = st.lists(st.tuples(st.lists(NAME, max_size=3), st.integers(0, 3)), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(TREE)
def test_a_tar_means_what_the_folder_it_unpacks_to_means(tmp_path_factory, tree):
    """The oracle is the reader of folders, which has nothing to do with tars."""
    place = tmp_path_factory.mktemp("tree")
    files = {"/".join([*folders, f"{i}.jpg"]): said(folders, i) for folders, i in tree}
    for name, data in files.items():
        (place / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "folder" / name).write_bytes(data)
    path = put(place / "x.tar", sorted(files.items()))
    try:
        wanted = folder_source(place / "folder", PrepareOptions(), scan(place / "folder"))
    except UserError:
        wanted = None
    try:
        found = open_made(path)
    except UserError:
        found = None
    if wanted is None:
        # A tar with images in no folder is a class tar, which a folder cannot be.
        assert found is None or any(not folders for folders, _ in tree)
    elif found is not None:
        assert sorted(taken(found)) == sorted(taken(wanted)) and found.classes == wanted.classes
    else:
        assert any(not folders for folders, _ in tree)


# --- reading ---------------------------------------------------------------------------------


def test_units_are_cut_at_tars_images_and_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_UNIT", 3)
    monkeypatch.setattr(tar_units, "_UNIT_BYTES", 100)
    sizes = {"a": [1, 1, 1, 1], "b": [60, 60, 1, 200, 1]}
    for name, each in sizes.items():
        put(tmp_path / f"{name}.tar", [(f"{name}/{i}.jpg", bytes(n)) for i, n in enumerate(each)])
    units = open_made(tmp_path).units
    assert [unit.num_samples for unit in units] == [3, 1, 1, 2, 1, 1]
    assert [s.name for unit in units for s in unit.read()] == [
        f"{name}.tar:{name}/{i}.jpg" for name in "ab" for i in range(len(sizes[name]))
    ]
    assert units[-6:] == list(units)
    with pytest.raises(IndexError):
        units[6]


def test_a_tar_that_shrinks_meanwhile_gives_errors_and_no_foreign_bytes(tmp_path):
    path = put(tmp_path / "x.tar", class_files("", "ab"))
    source = open_made(path)
    path.write_bytes(path.read_bytes()[:700])
    assert [error for _, error, _ in taken(source)].count(
        "cannot be read: the tar became shorter"
    ) == 3
    path.unlink()
    assert {error for _, error, _ in taken(source)} == {"cannot be read: No such file or directory"}


def test_a_replaced_tar_is_read_anew(tmp_path):
    path = put(tmp_path / "x.tar", class_files("", "ab"))
    before = list(open_made(path).units)
    put(tmp_path / "x.tar", [(name, data.upper()) for name, data in class_files("", "ab")])
    assert [repr(u) for u in open_made(path).units] != [repr(u) for u in before]


def photos_tar(path: Path, count: int) -> Path:
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            data = jpeg(photo(i, 200, 200))
            info = tarfile.TarInfo(f"{'ab'[i % 2]}/{i}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_killed_half_way_it_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    source = photos_tar(tmp_path / "x.tar", 120)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    code = (
        "from pathlib import Path; from pipelines.data.prepare import prepare;"
        "from pipelines.data.options import PrepareOptions; from pipelines.data.sources import tar;"
        "tar._UNIT = 10;"
        f"prepare({str(source)!r}, Path({str(cut)!r}), PrepareOptions(workers=1))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    folder, deadline = tmp_path / "cut.partial" / "shards", time.monotonic() + 60
    while len(list(folder.glob("*.parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(list(folder.glob("*.parquet")))
    assert 2 <= finished < 12 and not cut.exists()
    monkeypatch.setattr(module, "_UNIT", 10)
    made, original = [], parallel.make_shard
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "make_shard", lambda *a: made.append(a[0]) or original(*a))
        prepare(str(source), cut, PrepareOptions(workers=1))
    assert len(made) == 12 - finished
    prepare(str(source), whole, PrepareOptions(workers=1))
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in cut.iterdir())
    assert all((whole / name).read_bytes() == (cut / name).read_bytes() for name in names)
