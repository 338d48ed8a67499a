"""Which columns are taken, what may stand in them, and pictures that a row only names."""

import base64
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare
from pipelines.errors import UserError

from .conftest import jpeg, photo
from .parquet_made import class_label, features, open_made, taken

PIC = [b"p0", b"p1"]
HUB = pa.array([{"bytes": data, "path": "x.jpg"} for data in PIC])
NUMBERS = pa.array([0, 1])
PETS = ["cat", "dog"]
IMAGE = {"_type": "Image"}


def one_file(root, columns, **told):
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    if told:
        table = table.replace_schema_metadata(features(**told))
    pq.write_table(table, root / "train.parquet")
    return root


BYTES = {
    str(kind): pa.array([list(data) for data in PIC] if "list" in str(kind) else PIC, kind)
    for kind in (
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.binary(2),
        pa.list_(pa.uint8()),
        pa.large_list(pa.uint8()),
        pa.list_view(pa.uint8()),
        pa.list_(pa.uint8(), 2),
        pa.list_(pa.int8()),
    )
}


@pytest.mark.parametrize("images", BYTES.values(), ids=BYTES)
def test_images_of_any_type_that_holds_bytes(tmp_path, images):
    paths = pa.array([None, "x.jpg"])
    for column in (
        images,
        pa.StructArray.from_arrays([images], ["bytes"]),
        pa.StructArray.from_arrays([paths, images], ["path", "bytes"]),
        pa.ExtensionArray.from_storage(pa.opaque(images.type, "image", "test"), images),
    ):
        one_file(tmp_path, {"image": column, "label": NUMBERS})
        assert [image for *_, image in taken(open_made(tmp_path))] == ["p0", "p1"]


def test_a_dictionary_of_images(tmp_path):
    one_file(tmp_path, {"image": pa.array(PIC).dictionary_encode(), "label": NUMBERS})
    assert [image for *_, image in taken(open_made(tmp_path))] == ["p0", "p1"]


@pytest.mark.parametrize(
    "images",
    [
        pa.array([None, b""]),
        pa.array([None, {"bytes": None}], pa.struct([("bytes", pa.binary())])),
        pa.array([None, [1, None]], pa.list_(pa.uint8())),
        pa.array([{"bytes": None, "path": None}] * 2, HUB.type),
    ],
)
def test_rows_without_an_image_are_told(tmp_path, images):
    one_file(tmp_path, {"image": images, "label": NUMBERS}, image=IMAGE)
    assert [error for _, error, _ in taken(open_made(tmp_path))] == ["no image bytes"] * 2


FOUND = {
    # from the field script's list: the metadata says which is which
    "CIFAR-100's names": (
        {"img": HUB, "fine_label": NUMBERS},
        {"img": IMAGE, "fine_label": class_label(PETS)},
        ("img", "fine_label"),
    ),
    "labels": (
        {"image": HUB, "labels": NUMBERS},
        {"image": IMAGE, "labels": class_label(PETS)},
        ("image", "labels"),
    ),
    "WebDataset's names": (
        {"jpg": HUB, "cls": NUMBERS},
        {"jpg": IMAGE, "cls": {"dtype": "int64", "_type": "Value"}},
        ("jpg", "cls"),
    ),
    # neighbours: the same without metadata, or with more columns of a kind
    "known names": ({"img": HUB, "target": NUMBERS}, {}, ("img", "target")),
    "the one struct of bytes": ({"scan": HUB, "label": NUMBERS}, {}, ("scan", "label")),
    "image and mask": (
        {"image": HUB, "mask": HUB, "label": NUMBERS},
        {"image": IMAGE, "mask": IMAGE, "label": class_label(PETS)},
        ("image", "label"),
    ),
    "label and coarse_label": (
        {"image": HUB, "coarse_label": NUMBERS, "label": NUMBERS},
        {"coarse_label": class_label(["x", "y"]), "label": class_label(PETS)},
        ("image", "label"),
    ),
    "a name of the image as text": (
        {"image": ["a", "b"], "jpg": PIC, "label": NUMBERS},
        {},
        ("jpg", "label"),
    ),
    "names with dots": (
        {"image.size": NUMBERS, "image": HUB, "label.text": PETS, "label": NUMBERS},
        {},
        ("image", "label"),
    ),
}


@pytest.mark.parametrize(("columns", "told", "expected"), FOUND.values(), ids=FOUND)
def test_columns_found(tmp_path, columns, told, expected):
    source = open_made(one_file(tmp_path, columns, **told))
    assert {(unit.image, unit.label) for unit in source.units} == {expected}
    assert [image for *_, image in taken(source)] == ["p0", "p1"]
    assert any(expected[1] in note for note in source.notes) == (expected != ("image", "label"))


TWICE = pa.Table.from_arrays([HUB, NUMBERS, NUMBERS], names=["image", "label", "label"])
REFUSED = {
    "coarse and fine": (
        {"img": HUB, "fine_label": NUMBERS, "coarse_label": NUMBERS},
        {"fine_label": class_label(PETS), "coarse_label": class_label(PETS)},
        "fine_label, coarse_label: name one with --label-column",
    ),
    "label is not the ClassLabel": (
        {"image": HUB, "label": NUMBERS, "class": NUMBERS},
        {"class": class_label(PETS)},
        "class, label: name one with --label-column",
    ),
    "two images": ({"a": HUB, "b": HUB, "label": NUMBERS}, {}, "a, b: name one with --image-colu"),
    "an unknown name": ({"img": HUB, "fine_label": NUMBERS}, {}, r"fine_label \(int64\).*--label-"),
    "an image as label": ({"image": HUB, "label": HUB}, {}, "column label is struct"),
    "pixels": ({"image": [[[1, 2]], [[3]]], "label": NUMBERS}, {}, "column image is list"),
    "base64 in a struct": ({"image": [{"bytes": "QQ=="}], "label": [1]}, {}, "image is struct"),
    "one name twice": (TWICE, {}, "2 columns called 'label'"),
    "no label": ({"image": HUB}, {}, "no column 'label', only image"),
}


@pytest.mark.parametrize(("columns", "told", "message"), REFUSED.values(), ids=REFUSED)
def test_columns_that_are_not_certain(tmp_path, columns, told, message):
    one_file(tmp_path, columns, **told)
    with pytest.raises(UserError, match=message) as caught:
        open_made(tmp_path)
    assert "train.parquet" in str(caught.value) and "\n" not in str(caught.value)


def test_options_name_the_columns(tmp_path):
    one_file(tmp_path, {"a": HUB, "b": HUB, "fine": NUMBERS, "coarse.1": ["x", "y"]})
    source = open_made(tmp_path, image_column="b", label_column="coarse.1")
    assert [(name, image) for _, name, image in taken(source)] == [("x", "p0"), ("y", "p1")]
    for given, message in (
        ({"image_column": "c", "label_column": "fine"}, "no column 'c', only a, b, .*--image-col"),
        ({"image_column": "fine", "label_column": "fine"}, "fine is int64, expected bytes"),
        ({"image_column": "a", "label_column": "a"}, "a is struct.* expected whole numbers"),
        ({"image_column": "coarse.1", "label_column": "coarse.1"}, "both image and label"),
    ):
        with pytest.raises(UserError, match=message):
            open_made(tmp_path, **given)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a.jpg", "sub/b.jpg"]),
        pa.array(["a.jpg", "sub/b.jpg"], pa.large_string()),
        pa.array([{"path": "a.jpg"}, {"path": "sub/b.jpg"}]),
        pa.array([{"bytes": None, "path": "a.jpg"}, {"bytes": b"B", "path": "not there"}]),
    ],
)
@pytest.mark.parametrize("name", ["image", "file_name"])
def test_pictures_by_path(tmp_path, name, column):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"A")
    (tmp_path / "sub" / "b.jpg").write_bytes(b"B")
    one_file(tmp_path, {name: column, "label": NUMBERS})
    assert [image for *_, image in taken(open_made(tmp_path))] == ["A", "B"]
    alone = open_made(tmp_path / "train.parquet")
    assert [image for *_, image in taken(alone)] == ["A", "B"]


def test_paths_lead_nowhere_else(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (source / "secret-not").mkdir()
    os.symlink(tmp_path / "secret", source / "link.jpg")
    os.mkfifo(source / "pipe.jpg")
    paths = [
        "../secret", str(tmp_path / "secret"), "/etc/passwd", "link.jpg", "x/../../secret",
        f"file://{tmp_path}/secret", "pipe.jpg", "secret-not", "a\0b", *["gone.jpg"] * 64, "", ".",
        "data:image/png;base64,QQ==", "https://example.org/a.jpg",  # not among the first
    ]  # fmt: skip
    images = [{"bytes": None, "path": path} for path in paths]
    one_file(source, {"image": images, "label": [0] * len(paths)})
    samples = [s for unit in open_made(source).units for s in unit.read()]
    assert all(not sample.data and sample.error for sample in samples)
    assert len(samples) == len(paths)
    reasons = dict(zip(paths, (sample.error for sample in samples), strict=True))
    assert "leads out of the source" in reasons["link.jpg"]
    assert "put it there" in reasons["gone.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:image/png;base64,QUJD", "as base64 text"),
        (base64.b64encode(bytes(range(256)) * 4).decode(), "as base64 text"),
        (base64.urlsafe_b64encode(bytes(range(256)) * 4).decode(), "as base64 text"),
        (base64.encodebytes(bytes(range(256)) * 4).decode(), "as base64 text"),
        ("https://example.org/cat.jpg", "which are not fetched"),
        ("s3://bucket/cat.jpg", "which are not fetched"),
    ],
)
def test_pictures_written_out_as_text_are_refused_in_words(tmp_path, text, message):
    for column in ([None, text], [{"path": text}, {"path": None}]):
        one_file(tmp_path, {"image": pa.array(column), "label": NUMBERS})
        with pytest.raises(UserError, match=message) as caught:
            open_made(tmp_path)
        assert "--image-column" in str(caught.value) and len(str(caught.value)) < 400


def test_prepare_takes_pictures_by_path(tmp_path):
    source = tmp_path / "s"
    (source / "images").mkdir(parents=True)
    for i in range(10):
        (source / "images" / f"{i}.jpg").write_bytes(jpeg(photo(i, 32, 32)))
    paths = [f"images/{i}.jpg" for i in range(10)]
    one_file(source, {"file_name": paths, "label": ["cat", "dog"] * 5})
    options = PrepareOptions(workers=1, source="parquet")
    manifest = prepare(str(source), tmp_path / "out", options)
    assert manifest.classes == ["cat", "dog"] and not manifest.rejected


@pytest.mark.parametrize("path", ["label=cat/0.parquet", "split=train/label=cat/0.parquet"])
def test_a_label_in_the_name_of_a_folder_is_named(tmp_path, path):
    (tmp_path / path).parent.mkdir(parents=True)
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / path)
    with pytest.raises(UserError, match=r"label=cat is not read: write it into the file"):
        open_made(tmp_path)
