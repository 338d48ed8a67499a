"""What names of folders and shards say."""

import pytest

from pipelines.data.layout import foreign, foreign_path, split_of_folder, split_of_path


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train Train TRAIN training train_set training-set trainset TrainImages seg_train"
         " train2017 ILSVRC2012_img_train split=train partial-train train.parquet images_train"),
        ("val", "val Val valid Validation validation_set dev eval evaluation val2017 valset"
         " ILSVRC2012_img_val images-val split=validation"),
        ("test", "test Test TESTING test_set testset seg_test test2017 split=test"),
        # Words that only contain one, classes with one in their name, and two at once.
        ("", "retrain trainers trained latest contest attest devil device evaluate_me valley"
         " invalid steam_train train_station test_tube label=train train_test_split 1 cat été"),
    ],
)  # fmt: skip
def test_folders(split, names):
    assert {name: split_of_folder(name) for name in names.split()} == dict.fromkeys(
        names.split(), split
    )


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00294.parquet", "train"),
        ("data/validation-00000-of-00014.parquet", "val"),
        ("default/partial-train/0000.parquet", "train"),
        ("split=test/part-0.parquet", "test"),
        ("train.parquet/part-0.parquet", "train"),
        ("imagenet_val_03.tar", "val"),
        ("imagenet1k-train-0001.tar", "train"),
        ("latest.parquet", ""),
        ("retrain/0.parquet", ""),
        ("contest-0.tar", ""),
        ("train/train-0.parquet", "train"),
    ],
)
def test_shards(path, split):
    assert split_of_path(path) == split


@pytest.mark.parametrize("path", ["train/test-0.parquet", "val/train/0.tar", "train_val.parquet"])
def test_shards_that_speak_of_two_splits_are_refused(path):
    with pytest.raises(ValueError, match="at once"):
        split_of_path(path)


def test_what_systems_leave_behind():
    theirs = (
        *(".ipynb_checkpoints", ".DS_Store", "._cat.jpg", ".cache", "__MACOSX", "@eaDir"),
        *("#recycle", "lost+found", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini", "_SUCCESS"),
        *("_temporary", "~$x.docx", "a.crdownload", "Icon\r"),
    )
    assert all(map(foreign, [*theirs, "System Volume Information"]))
    # A class may begin with an underscore, and look a little like one of them.
    ours = ["_unknown_", "_background_noise_", "cat", "recycling bin", "thumbs.dbx", "@home", "#1"]
    assert not any(map(foreign, ours))
    assert foreign_path("train/@eaDir/a.jpg") and not foreign_path("train/a/b.jpg")
