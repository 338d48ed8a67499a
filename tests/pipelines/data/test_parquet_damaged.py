"""Parquet files that are foreign, damaged, empty, or of odd names: one line, and nothing lost."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare
from pipelines.data.sources import parquet
from pipelines.errors import UserError

from .conftest import jpeg, photo
from .parquet_made import features, hub_file, open_made, per_class, taken

PETS = ["cat", "dog"]


def counted(source):
    return {entry.reason: entry.count for entry in source.left_out}


def test_foreign_files_are_left_out_and_said(tmp_path):
    hub_file(tmp_path / "train-0.parquet", [0, 1], PETS)
    for name in (
        "._train-0.parquet",  # macOS beside every file, in the field script
        ".cache/huggingface/x.parquet",  # the hub's client
        "_temporary/0/part.parquet",  # Spark while it writes
        ".ipynb_checkpoints/train-0-checkpoint.parquet",  # neighbours: Jupyter,
        "@eaDir/train-0.parquet",  # Synology,
        "__MACOSX/train-0.parquet",  # zip files,
        "_metadata",  # Dask
        "train-1.parquet.crdownload",  # a browser
        "readme.md",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    source = open_made(tmp_path)
    assert per_class(source) == {"train": {"cat": 1, "dog": 1}}
    assert sum(counted(source).values()) == 9


def test_a_remote_listing_leaves_the_same_out():
    import fsspec

    memory = fsspec.filesystem("memory")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": [b"x"], "label": [0]}), sink)
    whole = sink.getvalue().to_pybytes()
    for name in ("d/train/0.parquet", "d/test/0.parquet", "d/.cache/0.parquet", "d/notes.txt"):
        memory.pipe(f"/foreign/{name}", whole)
    source = open_made("memory://foreign/d")
    assert taken(source) == [("train", "0", "x")]
    assert counted(source) == {"hidden": 1, "not Parquet by name": 1, "of a test split": 1}


def broken(root):
    """Files of which none can be read, each in another way."""
    hub_file(root / "whole.parquet", [0, 1] * 50, PETS)
    whole = (root / "whole.parquet").read_bytes()
    (root / "whole.parquet").unlink()
    (root / "train-cut.parquet").write_bytes(whole[:-30])
    (root / "train-empty.parquet").write_bytes(b"")
    (root / "train-page.parquet").write_bytes(b"<!DOCTYPE html> you are not logged in")
    (root / "train-pointer.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (root / "train-locked.parquet").write_bytes(whole[:-4] + b"PARE")
    pq.write_table(pa.table({}), root / "train-nothing.parquet")
    os.symlink("gone", root / "train-link.parquet")
    return [path.name for path in root.iterdir()]


def test_files_that_cannot_be_read(tmp_path):
    names = broken(tmp_path)
    for name in names:
        alone = tmp_path / "alone"
        alone.mkdir(exist_ok=True)
        os.rename(tmp_path / name, alone / name)
        with pytest.raises(UserError, match=name) as caught:
            open_made(alone)
        assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
        os.rename(alone / name, tmp_path / name)
    hub_file(tmp_path / "train-good.parquet", [0, 1], PETS)
    with pytest.raises(UserError, match=rf"\(and {len(names) - 1} more\).*--skip-bad"):
        open_made(tmp_path)
    source = open_made(tmp_path, skip_bad=True)
    assert per_class(source) == {"train": {"cat": 1, "dog": 1}}
    assert {name for name, _ in source.problems} == set(names)


def test_encrypted_files_are_said_to_be(tmp_path):
    hub_file(tmp_path / "train.parquet", [0, 1], PETS)
    whole = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(whole[:-4] + b"PARE")
    with pytest.raises(UserError, match=r"train\.parquet .*encrypted"):
        open_made(tmp_path)


def test_files_without_rows(tmp_path):
    empty = pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    pq.write_table(empty, tmp_path / "train-0.parquet")
    with pytest.raises(
        UserError, match=r"no file has any rows, such as train-0\.parquet"
    ) as caught:
        open_made(tmp_path)
    assert caught.value.exit_code == 1
    hub_file(tmp_path / "train-1.parquet", [0, 1], PETS)  # no conflict with what has no labels
    source = open_made(tmp_path)
    assert len(taken(source)) == 2 and counted(source) == {"without rows": 1}


def test_a_damaged_row_group_is_one_line_and_the_others_are_read(tmp_path):
    path = tmp_path / "train.parquet"
    hub_file(path, [0, 1] * 50, PETS, row_group_size=20, compression="none")
    content = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    found = taken(open_made(tmp_path))
    errors = [name for _, name, _ in found if name not in PETS]
    assert len(found) == 81 and len(errors) == 1
    assert errors[0].startswith("20 rows cannot be read as Parquet: ")


def test_a_file_that_is_gone_meanwhile(tmp_path):
    hub_file(tmp_path / "train.parquet", [0, 1], PETS)
    source = open_made(tmp_path)
    (tmp_path / "train.parquet").unlink()
    ((_, error, _),) = taken(source)
    assert error.startswith("2 rows cannot be read as Parquet: ")


@pytest.mark.parametrize("mark", ["_delta_log", ".hoodie"])
def test_tables_that_keep_deleted_rows_are_refused(tmp_path, mark):
    hub_file(tmp_path / "part-0.parquet", [0, 1], PETS)
    (tmp_path / mark).mkdir()
    with pytest.raises(UserError, match="also hold rows that were deleted"):
        open_made(tmp_path)


def test_names_of_any_bytes(tmp_path):
    for name in (b"caf\xe9-train.parquet", b"sub\xff/train.parquet", "猫\n-train.parquet".encode()):
        root = tmp_path / name.hex()
        hub_file(root / "x.parquet", [0, 1], PETS)
        path = os.path.join(os.fsencode(root), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.rename(root / "x.parquet", path)
        for source in (root, os.fsdecode(path)):
            assert len(taken(open_made(source))) == 2


def test_prepare_with_names_of_any_bytes(tmp_path):
    source = tmp_path / os.fsdecode(b"s\xe9")
    source.mkdir()
    names = [os.fsdecode(b"\xff.jpg"), *(f"{i}.jpg" for i in range(9))]
    for i, name in enumerate(names):
        (source / name).write_bytes(jpeg(photo(i, 32, 32)))
    paths = pa.array([os.fsencode(name) for name in names]).view(pa.string())
    table = pa.table({"image": paths, "label": [0, 1] * 5})
    pq.write_table(table, tmp_path / "t.parquet")
    os.rename(tmp_path / "t.parquet", source / os.fsdecode(b"train\xe9.parquet"))
    options = PrepareOptions(workers=1, source="parquet")
    manifest = prepare(str(source), tmp_path / "out", options)
    assert sum(split.samples for split in manifest.splits.values()) == 10


@pytest.mark.parametrize(
    "metadata",
    [
        {b"huggingface": b"["},
        {b"huggingface": b"[" * 100_000},
        {b"huggingface": b"\xff"},
        {b"huggingface": b'{"info": {"features": [1]}}'},
        {b"huggingface": b'{"info": {"features": {"label": 3, "image": {"_type": 4}}}}'},
        features(label={"_type": "ClassLabel", "names": None, "num_classes": 2}),
        features(label={"_type": "ClassLabel", "names": []}),
    ],
)
def test_metadata_that_says_nothing_is_passed_over(tmp_path, metadata):
    table = pa.table({"image": [b"x", b"y"], "label": [0, 1]})
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "train.parquet")
    assert open_made(tmp_path).classes == ["0", "1"]


def test_a_huge_row_group_is_divided(tmp_path, monkeypatch):
    hub_file(tmp_path / "train.parquet", [i % 2 for i in range(500)], PETS, row_group_size=500)
    whole = taken(open_made(tmp_path))
    monkeypatch.setattr(parquet, "_PIECE_BYTES", 1000)
    source = open_made(tmp_path)
    assert len(source.units) > 3
    assert taken(source) == whole
    names = [sample.name for unit in source.units for sample in unit.read()]
    assert names == [f"{tmp_path}/train.parquet:0:{row}" for row in range(500)]
