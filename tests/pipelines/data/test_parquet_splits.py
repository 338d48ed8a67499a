"""Which split a Parquet file or row is of: by its path below the source, an option, a column."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare
from pipelines.errors import UserError

from .conftest import jpeg, photo
from .parquet_made import hub_file, open_made, taken

LAYOUTS = {
    # those of the field script and of its list of kin
    "the hub's folders": {
        "default/train/0000": "train",
        "default/validation/0000": "val",
        "default/test/0000": None,
    },
    "arrow's": {"train/part-0": "train", "valid/part-0": "val", "test/part-0": None},
    "hive": {"split=train/part-0": "train", "split=val/part-0": "val", "split=test/part-0": None},
    "the hub's viewer": {"partial-train/0000": "train", "partial-validation/0000": "val"},
    "spark": {"train.parquet/part-0": "train", "test.parquet/part-0": None},
    "the hub's shards": {
        "data/train-00000-of-00002": "train",
        "data/train-00001-of-00002": "train",
        "data/validation-00000-of-00001": "val",
    },
    # neighbours: other spellings and depths of the same convention
    "any case": {"TRAIN/a": "train", "Val/a": "val", "Testing/a": None},
    "with the set's name": {"imagenet-train/0": "train", "imagenet-val/0": "val"},
    "hashes behind, as older hub sets have": {
        "data/train-00000-of-00001-5ec7a1de0b9f4c2a": "train",
        "data/valid-00000-of-00001-0dab1e5ba5eba11d": "val",
    },
    "hive with another key": {"year=1/train-0": "train", "year=2/train-0": "train"},
    "words within words say nothing": {"latest": "", "contest": "", "devices": "", "valley": ""},
    "kaggle": {"train": "train", "test": None},
    "one file of training, one of development": {"my_train_3": "train", "my_dev_3": "val"},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_paths_tell_the_split(tmp_path, layout):
    source_root = tmp_path / "test" / "train"  # folders above the source say nothing
    for file in layout:
        hub_file(source_root / f"{file}.parquet", [0, 1], ["cat", "dog"])
    source = open_made(source_root)
    found = {unit.path: unit.split for unit in source.units}
    expected = {str(source_root / f"{f}.parquet"): s for f, s in layout.items() if s is not None}
    assert found == expected
    tests = [entry for entry in source.left_out if "test split" in entry.reason]
    assert sum(entry.count for entry in tests) == list(layout.values()).count(None)
    assert source.origins.keys() == set(expected.values())


AMBIGUOUS = {
    # in the field script's list
    "two configurations": (["full/train-0", "small/train-0"], "full/train-0.* small/train-0"),
    "one within the other": (["train-0", "small/train-0"], "--train"),
    # neighbours: other ways in which files are not one set, or split and no split stand together
    "configurations without splits": (["32x32/0000", "64x64/0000"], "name one folder as SOURCE"),
    "the hub's cache with two revisions": (
        ["snapshots/a1/data/train-0", "snapshots/b2/data/train-0"],
        "snapshots/a1",
    ),
    "splits of different configurations": (["full/train/0", "small/validation/0"], "--train"),
    "two folders of train": (["train/0", "partial-train/0"], "--train"),
    "shards of two versions": (
        ["train-00000-of-00002", "train-00001-of-00002", "train-00000-of-00001"],
        "different series",
    ),
    "downloaded twice": (["train-00000-of-00001", "train-00000-of-00001 (1)"], "series"),
    "two series of train": (["train-00000-of-00001", "train_extra-00000-of-00001"], "series"),
    "a file that says nothing": (["train-0", "extra-0"], "train-0.* extra-0.*tells no split"),
    "a path that says two things": (["train/validation-0"], "train and val at once"),
    "no training file": (["validation-0", "test-0"], "none of train"),
}


@pytest.mark.parametrize(("files", "message"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path, files, message):
    for file in files:
        hub_file(tmp_path / f"{file}.parquet", [0, 1], ["cat", "dog"])
    with pytest.raises(UserError, match=message) as caught:
        open_made(tmp_path)
    assert "\n" not in str(caught.value)
    assert re.search("SOURCE|--train|rename", str(caught.value))  # the way on


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"train_from": "full"}, {"full/train-0": "train"}),
        ({"train_from": "small/train-0.parquet"}, {"small/train-0": "train"}),
        ({"train_from": "full", "val_from": "more"}, {"full/train-0": "train", "more/0": "val"}),
        (
            {"train_from": ".", "val_from": "more"},
            {"full/train-0": "train", "small/train-0": "train", "more/0": "val"},
        ),
    ],
)
def test_train_and_val_settle_it(tmp_path, given, expected):
    for file in ("full/train-0", "full/test-0", "small/train-0", "more/0"):
        hub_file(tmp_path / f"{file}.parquet", [0, 1], ["cat", "dog"])
    source = open_made(tmp_path, **given)
    found = {unit.path: unit.split for unit in source.units}
    assert found == {str(tmp_path / f"{file}.parquet"): split for file, split in expected.items()}
    assert sum(entry.count for entry in source.left_out) == 4 - len(expected)


def test_val_may_lie_elsewhere(tmp_path):
    hub_file(tmp_path / "here" / "a.parquet", [0, 1], ["cat", "dog"])
    hub_file(tmp_path / "there" / "b.parquet", [0, 1], ["dog", "cat"])
    source = open_made(tmp_path / "here", val_from=str(tmp_path / "there"))
    found = sorted((split, name, image) for split, name, image in taken(source))
    assert found == [
        ("train", "cat", "a.parquet 0"),
        ("train", "dog", "a.parquet 1"),
        ("val", "cat", "b.parquet 1"),
        ("val", "dog", "b.parquet 0"),
    ]
    with pytest.raises(UserError, match=r"--val nowhere: there are no Parquet files"):
        open_made(tmp_path / "here", val_from="nowhere")
    with pytest.raises(UserError, match="leave no file for training"):
        open_made(tmp_path / "here", val_from=".")


def test_a_file_that_is_the_source_is_divided_whatever_its_name(tmp_path):
    hub_file(tmp_path / "test.parquet", [0, 1], ["cat", "dog"])
    assert {split for split, _, _ in taken(open_made(tmp_path / "test.parquet"))} == {""}


def test_shards_that_are_not_there_are_said(tmp_path):
    hub_file(tmp_path / "train-00001-of-00003.parquet", [0, 1], ["cat", "dog"])
    assert open_made(tmp_path).notes == ["train: 1 of 3 shards are here"]


def split_file(path, splits):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "image": [f"{path.name} {i}".encode() for i in range(len(splits))],
        "label": [i % 2 for i in range(len(splits))],
        "split": splits,
    }
    pq.write_table(pa.table(columns), path)


def test_a_column_of_splits_decides_for_each_row(tmp_path):
    split_file(tmp_path / "all.parquet", ["train", "Validation", "test", None, "train"])
    source = open_made(tmp_path, split_column="split")
    assert taken(source) == [
        ("train", "0", "all.parquet 0"),
        ("val", "1", "all.parquet 1"),
        ("train", "no split", ""),
        ("train", "0", "all.parquet 4"),
    ]
    assert [(e.reason, e.count, e.unit) for e in source.left_out] == [
        ("of a test split", 1, "rows")
    ]


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"a": ["train", "test"]}, {}, r"'test' of some rows: add --split-column split"),
        ({"train": ["train", "val"]}, {}, "is of train by its path.* 'val' of 1 rows"),
        ({"a": ["train", "extra"]}, {"split_column": "split"}, "'extra', which is neither"),
        ({"a": ["val", "val"]}, {"split_column": "split"}, "train of no row"),
        ({"a": ["train", "val"]}, {"split_column": "fold"}, "no column 'fold'.* --split-column"),
        ({"a": [0, 1]}, {"split_column": "split"}, "is int64, expected text"),
    ],
)
def test_a_column_of_splits_is_never_passed_over(tmp_path, files, options, message):
    for name, splits in files.items():
        split_file(tmp_path / f"{name}.parquet", splits)
    with pytest.raises(UserError, match=message):
        open_made(tmp_path, **options)


@pytest.mark.parametrize(
    "files",
    [
        {"train": ["train", "train"], "val": ["validation"]},  # agrees with the paths
        {"a": ["train", "train"]},  # says nothing that is not so anyway
        {"a": ["left", "right"]},  # is no column of splits
    ],
)
def test_a_column_that_adds_nothing_is_no_hindrance(tmp_path, files):
    for name, splits in files.items():
        split_file(tmp_path / f"{name}.parquet", splits)
    assert len(taken(open_made(tmp_path))) == sum(map(len, files.values()))


def test_prepare_keeps_test_images_out_and_says_so(tmp_path):
    """The field script D1: one heap of 60 came out, test images and all."""
    base = 0
    for split, count in (("train", 20), ("validation", 6), ("test", 4)):
        images = [{"bytes": jpeg(photo(base + i, 32, 32)), "path": None} for i in range(count)]
        base += count
        labels = [-1] * count if split == "test" else [i % 2 for i in range(count)]
        path = tmp_path / "h" / "default" / split / "0000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"image": images, "label": labels}), path)
    manifest = prepare(str(tmp_path / "h"), tmp_path / "out", PrepareOptions(workers=1))
    assert manifest.splits["val"].samples == 6
    assert manifest.splits["train"].samples + manifest.splits["minival"].samples == 20
    assert "of a test split" in manifest.model_dump_json()
    assert "default/validation/0000.parquet" in manifest.model_dump_json()
