"""Parquet shards as hubs publish them."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.loader import make_loader
from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare
from pipelines.errors import UserError

from .conftest import jpeg, photo

ONE = PrepareOptions(workers=1, minival=0.2)


def write(path, labels, *, names=None, base=0, row_group_size=5, struct=True):
    data = [jpeg(photo(base + i, 40, 40)) for i in range(len(labels))]
    images = [{"bytes": d, "path": f"{i}.jpg"} for i, d in enumerate(data)] if struct else data
    table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
    if names:
        features = {"info": {"features": {"label": {"names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return data


@pytest.fixture
def hub(tmp_path):
    """Two training shards and one validation shard, 3 named classes."""
    root, names = tmp_path / "hub" / "data", ["ant", "bee", "cat"]
    write(root / "train-00000-of-00002.parquet", [0, 1, 2] * 4, names=names)
    write(root / "train-00001-of-00002.parquet", [2, 1, 0] * 4, names=names, base=50)
    write(root / "validation-00000-of-00001.parquet", [0, 1, 2] * 2, names=names, base=100)
    write(root / "test-00000-of-00001.parquet", [-1] * 3, names=names, base=200)
    return tmp_path / "hub"


def test_shards_rows_and_class_names(hub, tmp_path):
    manifest = prepare(str(hub), tmp_path / "out", ONE)
    assert manifest.classes == ["ant", "bee", "cat"]
    assert manifest.splits["val"].counts == [2, 2, 2]
    assert manifest.splits["train"].samples + manifest.splits["minival"].samples == 24
    index = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    assert all(
        row["source_name"].endswith(f":{g}:{r}")
        for row in index[:5]
        for g, r in [row["source_name"].rsplit(":", 2)[1:]]
    )


def test_labels_and_images_arrive_in_order(hub, tmp_path):
    prepare(str(hub), tmp_path / "out", ONE)
    loader = make_loader(tmp_path / "out", "val", batch_size=6, train=False)
    images, labels = next(iter(loader))
    loader.close()
    assert labels.tolist() == [0, 1, 2] * 2
    for i, image in enumerate(images):
        expected = np.asarray(photo(100 + i, 40, 40)).transpose(2, 0, 1)
        assert np.abs(image.numpy().astype(int) - expected).mean() < 4


def test_an_fsspec_address(hub, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in (hub / "data").iterdir():
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    manifest = prepare("memory://bucket", tmp_path / "out", ONE)
    assert manifest.source == "memory://bucket" and manifest.splits["val"].samples == 6
    local = prepare(f"file://{hub}", tmp_path / "local", ONE)
    assert local.splits["train"].sha256 == manifest.splits["train"].sha256


def test_chosen_classes_are_renumbered_and_others_left_out(hub, tmp_path):
    options = ONE.model_copy(update={"classes": ["ant", "cat"]})
    manifest = prepare(str(hub), tmp_path / "out", options)
    assert manifest.classes == ["ant", "cat"] and manifest.splits["val"].counts == [2, 2]


def test_a_class_missing_in_val_is_reported(tmp_path):
    write(tmp_path / "hub" / "train.parquet", [0, 1, 2] * 4, names=["ant", "bee", "cat"])
    write(tmp_path / "hub" / "val.parquet", [0, 2] * 2, names=["ant", "bee", "cat"], base=50)
    with pytest.raises(UserError, match=r"1 of 16 .* val/bee: class bee has no images in val"):
        prepare(str(tmp_path / "hub"), tmp_path / "out", ONE)
    manifest = prepare(
        str(tmp_path / "hub"), tmp_path / "out", ONE.model_copy(update={"skip_bad": True})
    )
    assert manifest.splits["val"].counts == [2, 0, 2]


def test_a_file_replaced_between_two_runs_is_read_again(tmp_path):
    path = tmp_path / "hub" / "train.parquet"
    write(path, [0, 1, 7] * 5, names=["ant", "bee"])
    with pytest.raises(UserError, match="5 of 15"):
        prepare(str(tmp_path / "hub"), tmp_path / "out", ONE)
    write(path, [0, 1, 1] * 5, names=["ant", "bee"], base=300)
    manifest = prepare(str(tmp_path / "hub"), tmp_path / "out", ONE)
    assert sum(split.samples for split in manifest.splits.values()) == 15
    index = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    known = {hashlib.sha1(jpeg(photo(300 + i, 40, 40))).hexdigest() for i in range(15)}
    assert {row["source_sha1"] for row in index} == known


def test_labels_out_of_range_are_rejected(tmp_path):
    write(tmp_path / "s" / "train.parquet", [0, 1, 0, 1, 7, -2, None, 0, 1, 1], names=["a", "b"])
    with pytest.raises(UserError, match="3 of 10 images refused"):
        prepare(str(tmp_path / "s"), tmp_path / "out", ONE)
    text = (tmp_path / "out.partial" / "rejected.csv").read_text()
    assert "label 7 is out of range 0..1" in text and "label -2" in text and "no label" in text


def test_unnamed_classes_are_counted_or_declared(tmp_path):
    write(tmp_path / "s" / "x.parquet", [0, 1, 3] * 6, struct=False)
    manifest = prepare(str(tmp_path / "s" / "x.parquet"), tmp_path / "out", ONE)
    assert manifest.classes == ["0", "1", "2", "3"]
    with pytest.raises(UserError, match="label 3 is out of range"):
        prepare(str(tmp_path / "s"), tmp_path / "b", ONE.model_copy(update={"classes": 3}))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"pix": [b"x"], "label": [1]}, "has no column 'image', only pix .*--image-column"),
        ({"image": [b"x"], "label": [[1]]}, "column label is list.*expected whole .*--label-col"),
        ({"image": [1.5], "label": [1]}, "column image is double, expected bytes.*--image-column"),
    ],
)
def test_other_columns_are_named(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=message):
        prepare(str(tmp_path / "x.parquet"), tmp_path / "out", ONE)


def test_a_file_that_is_no_parquet(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR0" * 10)
    with pytest.raises(UserError, match=r"x.parquet cannot be read as Parquet") as caught:
        prepare(str(tmp_path / "x.parquet"), tmp_path / "out", ONE)
    assert "\n" not in str(caught.value)


def test_an_unknown_kind_of_address(tmp_path):
    with pytest.raises(UserError, match="cannot open gopher://x"):
        prepare("gopher://x", tmp_path / "out", ONE)
