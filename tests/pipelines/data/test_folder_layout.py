"""What is a split, what is a class, and what is neither, in a directory."""

import os
import re

import pytest

from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import rehearse
from pipelines.errors import UserError

from .folders import left_out, make, opened, picture


def outcome(root, **options):
    """{split: classes}, or the message of the refusal."""
    try:
        _, samples = opened(root, **options)
    except UserError as error:
        return str(error).replace("\n", " IN TWO LINES ")
    return {
        split: sorted({name for name, its in samples.values() if its == split})
        for split in sorted({split for _, split in samples.values()})
    }


BOTH = {"train": ["x", "y"], "val": ["x", "y"]}


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("training", "validation"),
        ("Train", "Val"),
        ("train", "Validation"),
        ("train", "dev"),
        # Neighbours: COCO's numbers, ImageNet's archives, capitals alone, camel case, hive,
        # folders within folders, one folder more in one of them only.
        ("train2017", "val2017"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val"),
        ("TRAINING SET", "VALID"),
        ("TrainImages", "ValImages"),
        ("split=train", "split=validation"),
        ("images/train", "images/val"),
        ("pets/data/train", "pets/data/val"),
        ("train/images", "val"),
        ("training_set/training_set", "eval_set/eval_set"),
    ],
)
def test_spellings_of_train_and_val(tmp_path, train, val):
    make(tmp_path, f"{train}/x", f"{train}/y", f"{val}/x", f"{val}/y")
    assert outcome(tmp_path) == BOTH


def test_a_class_first_and_its_splits_in_it(tmp_path):
    make(tmp_path, "x/train", "x/val", "y/train", "y/val", "x/test")
    source, _ = opened(tmp_path)
    assert outcome(tmp_path) == BOTH
    assert left_out(source) == {"of the test split x/test/": 2}


@pytest.mark.parametrize(
    "classes",
    [
        ["bus", "car", "train"],
        # Neighbours: another spelling, a name that only contains the word, one that is like a
        # split beside numbers.
        ["bus", "Training"],
        ["steam_train", "test_tube", "valley"],
        ["1", "2", "train"],
        ["retrain", "contest", "devil"],
    ],
)
def test_classes_called_like_splits(tmp_path, classes):
    make(tmp_path, *classes)
    assert outcome(tmp_path) == {"": sorted(classes)}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["bus", "car", "train/day", "train/night"], "--train train .* or --train ."),
        (["val/x", "val/y", "test/x"], "no folder of training images: name it by --train DIR"),
        # Neighbours: two that may be val; two that may be train; splits within a split; a test
        # folder among classes; pictures and masks; splits without classes; other classes in val;
        # some classes with splits in them and some without.
        (["train/x", "train/y", "val/x", "valid/x"], "val/, valid/, which may all be val"),
        (["train2014/x", "train2017/x", "val/x"], "which may all be train"),
        (["train/train/x", "train/test/x"], "may be splits or classes"),
        (["bus", "car", "test"], "--train . if it is a class too"),
        (["images/train/x", "masks/train/x"], "--train DIR and --val DIR"),
        (["train", "val"], "no class folders: .*--labels FILE.csv"),
        (["train/x", "train/y", "val/a", "val/b"], "no class in common: x, y in train/"),
        (["x/train", "x/val", "y"], "called like splits"),
        (["images"], "one class only, 'images'.*--labels FILE.csv"),
        (["train/x", "val/x"], "one class only, 'x'"),
        ([], "has no images, Parquet files or tars"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path, folders, message):
    make(tmp_path, *folders)
    told = outcome(tmp_path)
    assert isinstance(told, str)
    assert re.search(message, told), told


def test_options_settle_it(tmp_path):
    root = make(tmp_path / "a", "bus", "car", "train/day", "train/night", "holdout/day")
    assert outcome(root, train_from=".") == {"train": ["bus", "car", "holdout", "train"]}
    assert outcome(root, train_from="train") == {"train": ["day", "night"]}
    assert outcome(root, train_from="train", val_from="holdout") == {
        "train": ["day", "night"],
        "val": ["day"],
    }
    assert outcome(root, train_from=".", val_from="train") == (
        f"{root}: train and val have no class in common: bus, car, holdout in ./, day, night in "
        "train/: name other folders by --train DIR and --val DIR, or call those of one class alike"
    )
    elsewhere = make(tmp_path / "b", "bus", "car")
    both = outcome(make(tmp_path / "c", "bus", "car"), val_from=str(elsewhere))
    assert both == {"train": ["bus", "car"], "val": ["bus", "car"]}
    assert "no such folder" in outcome(root, train_from="nowhere")
    test = make(tmp_path / "d", "train/x", "train/y", "test/x", "test/y")
    assert outcome(test, val_from="test") == BOTH


def test_a_test_split_is_left_out_and_said(tmp_path):
    make(tmp_path, "train/x", "train/y", "test/x", "test/y", "Test2/z", count=3)
    summary, _ = rehearse(str(tmp_path), PrepareOptions(workers=1))
    assert {(g.reason, g.count) for g in summary.left_out} == {
        ("of the test split test/", 6),
        ("of the test split Test2/", 3),
    }
    assert any("--val" in note for note in summary.notes)


def test_hidden_and_foreign_things_are_neither(tmp_path):
    make(tmp_path, "train/x", "train/y")
    # Of the scripts: notebooks, macOS, Synology. Neighbours: QNAP, Windows, NFS, Linux, a trash.
    for name in (
        *("train/x/.ipynb_checkpoints", "train/__MACOSX", "train/@eaDir", "train/x/@Recycle"),
        *("train/$RECYCLE.BIN", "train/lost+found", "train/.Trash-1000", ".git"),
    ):
        make(tmp_path / name, ".", count=1)
    (tmp_path / "train/x/._0.png").write_bytes(b"resource fork")
    source, samples = opened(tmp_path)
    assert len(samples) == 4 and source.classes == ["x", "y"] and not source.problems
    assert sum(left_out(source).values()) == 9


def test_linked_folders_are_followed_and_loops_are_not(tmp_path):
    root = make(tmp_path / "s", "train/x", "train/y")
    other = make(tmp_path / "else", "more", "z/deep")
    (root / "train/y/more").symlink_to(other / "more")  # within a class
    (root / "train/z").symlink_to(other / "z")  # a class that is a link
    (root / "train/x/up").symlink_to(root)  # a loop
    (root / "train/x/self").symlink_to(".")  # another
    (root / "train/x/gone.png").symlink_to("nowhere")
    (root / "train/x/file.png").symlink_to(other / "more/0.png")
    source, samples = opened(root)
    assert source.classes == ["x", "y", "z"]
    assert {"train/y/more/0.png", "train/z/deep/1.png", "train/x/file.png"} <= samples.keys()
    assert len(samples) == 4 + 2 + 2 + 1
    assert left_out(source) == {"links to a folder they lie in": 2}
    assert source.problems == [("train/x/gone.png", "a link that leads nowhere")]


def test_files_that_are_no_images_are_counted_and_images_of_any_name_are_taken(tmp_path):
    make(tmp_path, "x", "y")
    for name in ("a.xml", "b.xml", "notes.TXT", "labels.csv", "Makefile", "clip.mp4", "z.npy"):
        (tmp_path / "x" / name).write_bytes(b"BM of a sort")
    for i, (name, kind) in enumerate([("noending", "PNG"), ("wrong.txt", "JPEG"), ("0001", "GIF"),
                                      ("photo.JFIF", "JPEG"), ("a.b.dat", "WEBP")]):  # fmt: skip
        (tmp_path / "y" / name).write_bytes(picture(900 + i, kind))
    (tmp_path / "y" / "broken.jpg").write_bytes(b"no")  # called one: the decoder refuses it
    os.mkfifo(tmp_path / "y" / "pipe.jpg")
    source, samples = opened(tmp_path)
    assert {n for n in samples if n.startswith("y/")} == {
        "y/0.png", "y/1.png", "y/noending", "y/wrong.txt", "y/0001", "y/photo.JFIF", "y/a.b.dat",
        "y/broken.jpg",
    }  # fmt: skip
    assert left_out(source) == {
        "no images (.xml)": 2, "no images (.txt)": 1, "no images (.csv)": 1,
        "no images (no ending)": 1, "no images (.mp4)": 1, "no images (.npy)": 1,
        "neither file nor folder": 1,
    }  # fmt: skip


def test_images_outside_the_classes_and_empty_folders_are_said(tmp_path):
    make(tmp_path, "train/x", "train/y", "val/x", "val/y", "extra/x", "train", ".")
    (tmp_path / "train/empty/er").mkdir(parents=True)
    source, samples = opened(tmp_path)
    assert len(samples) == 8 and source.classes == ["x", "y"]
    assert left_out(source) == {"outside the class folders": 6, "without an image": 1}


def test_numbered_classes_are_in_the_order_of_text_and_it_is_said(tmp_path):
    make(tmp_path, *(str(i) for i in range(1, 13)))
    source, _ = opened(tmp_path)
    assert source.classes == ["1", "10", "11", "12", "2", "3", "4", "5", "6", "7", "8", "9"]
    assert source.notes == ["classes are in the order of their names as text: 1, 10, 11, 12, …"]
    source, _ = opened(make(tmp_path / "other", "01", "02", "10"))
    assert source.notes == []


@pytest.mark.parametrize(
    "names", [("Cat", "cat"), ("caf\u00e9", "cafe\u0301"), ("dog", "dog ")], ids=range(3)
)
def test_classes_that_look_like_one_are_said_to_be_two(tmp_path, names):
    source, _ = opened(make(tmp_path, *names, "x"))
    assert len(source.classes) == 3
    assert any("are two, though they look like one" in note for note in source.notes)


def test_parquet_and_class_folders_together_are_refused(tmp_path):
    make(tmp_path, "x", "y")
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    assert "--source parquet" in outcome(tmp_path)
    source, samples = opened(tmp_path, source="folder")
    assert len(samples) == 4 and left_out(source) == {"no images (shards)": 1}
