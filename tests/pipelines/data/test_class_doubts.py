"""Data sets as people download them whose folders lie where classes do and are none.

Each is a neighbour of the issue's "what is a split, what is a class": the first two rows of names
are of well-known data sets, the others differ from them in one thing.
"""

import pytest

from pipelines.errors import UserError

from .folders import left_out, make, opened


def outcome(root, **options):
    try:
        source, _ = opened(root, **options)
    except UserError as error:
        return str(error)
    return source.classes


@pytest.mark.parametrize(
    ("folders", "option"),
    [
        ("images annotations/trimaps", "--labels FILE.csv"),  # Oxford Pets
        (
            "images/001.Albatross images/002.Auk segmentations/001.Albatross",
            "--train images",
        ),  # CUB
        ("HAM10000_images_part_1 HAM10000_images_part_2", "--labels"),  # skin lesions, two archives
        ("images_001/images images_002/images images_003/images", "--labels"),  # NIH chest X-rays
        ("fold1 fold2 fold3", "--labels"),  # numbers behind another word for a part
        ("photo/dog photo/elk sketch/dog sketch/elk", "--train photo"),  # PACS: domains
        ("amazon/images/bike amazon/images/mug dslr/images/bike dslr/images/mug", "--train amazon"),
        ("color/Apple gray/Apple color/Corn gray/Corn", "--train color"),  # PlantVillage: variants
        ("flowers/rose flowers/tulip rose tulip", "--train flowers"),  # a copy within (Kaggle)
        ("train/photo/dog train/photo/elk train/art/dog train/art/elk", "--train train/art"),
    ],
)
def test_they_are_refused_with_the_option_that_settles_it(tmp_path, folders, option):
    said = outcome(make(tmp_path, *folders.split()))
    assert isinstance(said, str) and option in said and "\n" not in said
    everything = outcome(tmp_path, train_from="train" if folders.startswith("train") else ".")
    assert isinstance(everything, list) and len(everything) > 1


@pytest.mark.parametrize(
    "folders",
    [
        "class_1 class_2",  # numbered, and no word for a part
        "1 2 10",
        "images_of_cats images_of_dogs",  # more words than those that say nothing
        "cat/left cat/right dog/left",  # one name in common only
        "s1/1 s1/2 s2/1 s2/2",  # numbers are no names of classes
        "animals/cat animals/dog vehicles/car",  # no name in common
        "bullet_train steam_train bus",  # words for one split only
    ],
)
def test_classes_that_look_a_little_like_them_are_taken(tmp_path, folders):
    assert outcome(make(tmp_path, *folders.split())) == sorted(
        {folder.split("/")[0] for folder in folders.split()}
    )


def test_folders_in_classes_are_said(tmp_path):
    source, _ = opened(make(tmp_path, "a/abbey", "a/alley", "b/bar"))
    assert source.notes == ["classes hold folders, whose images count as theirs: a/abbey"]
    source, _ = opened(make(tmp_path / "tiny", "n01/images", "n02/images"))
    assert not source.notes


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("asl_alphabet_train", "asl_alphabet_test"),
        ("ISIC_2019_Training_Input", "ISIC_2019_Test_Input"),  # the word stands in the middle
        ("trainA", "testA"),  # with a letter behind it
    ],
)
def test_splits_of_one_name_but_for_the_split(tmp_path, train, test):
    root = make(tmp_path, f"{train}/a", f"{train}/b", f"{test}/a", f"{test}/b")
    source, samples = opened(root)
    assert source.classes == ["a", "b"] and {split for _, split in samples.values()} == {"train"}
    assert left_out(source) == {f"of the test split {test}/": 4}
    source, samples = opened(root, val_from=test)
    assert sorted(split for _, split in samples.values()) == ["train"] * 4 + ["val"] * 4


def test_val_is_looked_for_beside_the_train_that_is_named(tmp_path):
    root = make(tmp_path, "new/train/a", "new/train/b", "new/valid/a", "new/valid/b", "test/test")
    assert "--train" in outcome(root)
    _, samples = opened(root, train_from="new/train")
    assert sorted(split for _, split in samples.values()) == ["train"] * 4 + ["val"] * 4


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dogs.zip", "unpack the archives"),
        ("data.tfrecord", r"1 no images \(.tfrecord\), as data.tfrecord"),
        ("data_batch_1", "data_batch_1"),
    ],
)
def test_a_folder_without_images_is_told_what_is_there(tmp_path, name, told):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"no images, Parquet files or tars.*{told}"):
        opened(tmp_path)
    with pytest.raises(UserError, match="is no Parquet file, tar or folder"):
        opened(tmp_path / name)
