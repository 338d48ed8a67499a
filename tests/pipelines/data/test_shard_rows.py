"""Shards' tables as columns: what was written, in few bytes an image."""

import hashlib
import tracemalloc
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data import beton, sample_index, shard_rows
from pipelines.data.assemble import assemble, find_absent_classes, find_rejected, split_rows
from pipelines.data.beton import read_table
from pipelines.data.manifest import INDEX_NAME, SPLITS, Manifest
from pipelines.data.options import PrepareOptions
from pipelines.data.shard_rows import (
    Rows,
    coded,
    equal_digests,
    hexadecimal,
    in_chunks,
    read_rows,
)
from pipelines.data.shards import schema, shard_paths
from pipelines.data.sources.file_list import Files, LabelledFiles
from pipelines.data.sources.source import Source
from pipelines.data.splits import NO_SPLIT
from pipelines.data.summary import summarize


def write_shards(folder: Path, sizes: list[int], images: bool = False) -> list[dict[str, object]]:
    """Tables of so many rows each, all different; gives the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    every: list[dict[str, object]] = []
    for number, size in enumerate(sizes):
        rows = []
        for i in range(len(every), len(every) + size):
            row: dict[str, object] = {
                field.name: "" if pa.types.is_string(field.type) else i % 100 for field in schema()
            }
            row |= {
                "split": ("train", "val", "")[i % 3],
                "name": f"ILSVRC2012_img_train.tar:n01440764/n01440764_{i}.JPEG",
                "source_sha1": hashlib.sha1(b"%d" % i).digest(),
                "error": "empty file" if i % 50 == 7 else "",
                "converted": "turned upright" if i % 2 else "",
                "width": 1 if i % 2 else 60_000,  # raw where odd, of one pixel
                "height": 1 if i % 2 else 65_535,
                "mode": i % 2,
                "size": 3,
                "offset": 3 * len(rows),
                "label": i % 5,
            }
            row |= {f"{kind}_{c}": float(i) for kind in ("sum", "square") for c in "rgb"}
            rows.append(row)
        data, table = shard_paths(folder, number)
        pq.write_table(pa.Table.from_pylist(rows, schema()), table)
        if images:
            data.write_bytes(b"abc" * len(rows))
        every += rows
    return every


@pytest.mark.parametrize("sizes", [[], [0], [5], [3, 0, 200, 1]])
def test_rows_are_those_of_the_tables(sizes, tmp_path):
    written = write_shards(tmp_path, sizes)
    rows = read_rows(tmp_path, len(sizes))
    every = range(sum(sizes))
    assert len(rows) == len(every)
    shards = rows.shards_of(np.arange(len(rows))).tolist()
    assert shards == [n for n, size in enumerate(sizes) for _ in range(size)]
    assert rows.names(every) == {i: written[i]["name"] for i in every}
    assert rows.names(every[3::50]) == {i: written[i]["name"] for i in every[3::50]}
    for name, texts in rows.texts.items():
        assert [texts[code] for code in rows[name]] == [row[name] for row in written]
        assert texts[0] == ""
    for name in ("label", "width", "height", "mode", "size", "offset"):
        assert rows[name].tolist() == [row[name] for row in written]
    assert rows["source_sha1"].tobytes() == b"".join(row["source_sha1"] for row in written)


def test_texts_are_found_and_labels_that_are_no_class_stay_none(tmp_path):
    written = write_shards(tmp_path, [4])
    for row, label in zip(written, (-5, 1 << 32, 2, (1 << 63) - 1), strict=True):
        row["label"] = label
    pq.write_table(pa.Table.from_pylist(written, schema()), shard_paths(tmp_path, 0)[1])
    rows = read_rows(tmp_path, 1)
    assert rows["label"][2] == 2
    assert not ((rows["label"] >= 0) & (rows["label"] < 1_000_000))[[0, 1, 3]].any()
    assert rows.is_text("split", "val").tolist() == [False, True, False, False]
    assert not rows.is_text("split", "test").any()


def test_equal_digests_are_found_and_those_that_end_in_zeros_stay_whole(monkeypatch):
    """NumPy cuts zeros off such texts where they are taken one by one; chunks meet in a group."""
    monkeypatch.setattr(shard_rows, "_CHUNK", 2)
    digests = [bytes(20), b"a" + bytes(19), bytes(19) + b"a", b"\xff" * 20]
    column = np.frombuffer(b"".join(digests), "S20")
    assert not len(equal_digests(column)) and not len(equal_digests(column[:0]))
    text = pa.array(digests, pa.binary(20))
    assert hexadecimal(text).to_pylist() == [digest.hex() for digest in digests]
    assert hexadecimal(text.slice(1, 2)).to_pylist() == [d.hex() for d in digests[1:3]]
    rng = np.random.default_rng(0)
    for _ in range(50):
        picked = rng.integers(0, 4, rng.integers(1, 12))
        again = equal_digests(column[picked]).tolist()
        assert sorted(again) == [i for i in range(len(picked)) if (picked == picked[i]).sum() > 1]
        seen = picked[again].tolist()  # those of one digest lie together, in their order
        assert len(list(groupby(seen))) == len(set(seen))
        assert all(a < b for a, b in pairwise(again) if picked[a] == picked[b])


def test_texts_by_position_and_numbers_in_chunks():
    texts = pa.array(["a", "b", "c"])
    assert coded(np.array([2, 0, 2]), texts).to_pylist() == ["c", "a", "c"]
    long = np.arange(200_000)
    assert list(in_chunks(long, -long)) == list(zip(long.tolist(), (-long).tolist(), strict=True))


def make(folder: Path, images: int) -> tuple[int, Rows, np.ndarray, Manifest]:
    """Peak bytes of putting so many images together, as `prepare` does when all shards are made."""
    sizes = [250] * (images // 250)
    write_shards(folder / "shards", sizes, images=True)
    source = Source("s", [f"n{i:08d}" for i in range(5)], [])
    options = PrepareOptions(workers=1, minival=0.1)
    tracemalloc.start()
    rows = read_rows(folder / "shards", len(sizes))
    splits = split_rows(rows, source, options)
    rejected, copies = find_rejected(rows, splits, source.classes)
    del rows.columns["source_sha1"]
    assert copies == 0 and list(rejected) == list(range(7, images, 50))
    good = np.ones(images, bool)
    good[list(rejected)] = False
    del rejected
    find_absent_classes(rows, splits, good, source.classes)
    splits[~good] = NO_SPLIT
    summarize(source, rows, splits, [])
    manifest = assemble(source, options, rows, splits, folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, rows, splits, manifest


def test_memory_grows_by_a_hundred_bytes_an_image(tmp_path, monkeypatch):
    """As objects it was 1,800; a million images must fit beside everything else."""
    monkeypatch.setattr(sample_index, "_ROWS", 1000)  # what is one row group's does not count here
    monkeypatch.setattr(shard_rows, "_CHUNK", 1000)
    monkeypatch.setattr(beton, "_CHUNK", 1000)
    small, large = make(tmp_path / "a", 5_000)[0], make(tmp_path / "b", 25_000)[0]
    assert (large - small) / 20_000 < 130


def test_index_and_sums_are_those_of_the_tables(tmp_path, monkeypatch):
    """Row groups, chunks and refused rows leave no trace in what is written."""
    monkeypatch.setattr(sample_index, "_ROWS", 600)
    monkeypatch.setattr(beton, "_CHUNK", 70)
    _, _, splits, manifest = make(tmp_path, 2_000)
    index = pq.ParquetFile(tmp_path / INDEX_NAME)
    assert index.num_row_groups == 3
    found = index.read().to_pylist()
    good = [i for i in range(2_000) if i % 50 != 7]
    assert [int(row["source_name"].rpartition("_")[2][:-5]) for row in found] == good
    for split in SPLITS:
        mine = [row for row in found if row["split"] == split]
        assert [row["position"] for row in mine] == list(range(manifest.splits[split].samples))
        data = (tmp_path / f"{split}.beton").read_bytes()
        assert all(data[row["offset"] : row["offset"] + row["size"]] == b"abc" for row in mine)
        assert hashlib.sha256(data).hexdigest() == manifest.splits[split].sha256
        table = read_table(tmp_path / f"{split}.beton")
        assert table.label.tolist() == [row["label"] for row in mine]
        assert table.pointer.tolist() == [row["offset"] for row in mine]
    for i, row in zip(good, found, strict=True):
        assert row["source_sha1"] == hashlib.sha1(b"%d" % i).hexdigest()
        assert (row["label"], row["class"]) == (i % 5, f"n{i % 5:08d}")
    train = np.flatnonzero(splits == 0)
    pixels = np.where(train % 2, 1, 60_000 * 65_535).sum()
    mean = train.sum() / pixels / 255
    assert manifest.mean == pytest.approx([mean] * 3, rel=1e-15)


def test_lists_of_files_take_less_than_their_objects():
    def filled(count: int) -> tuple[LabelledFiles, int]:
        tracemalloc.start()
        files = LabelledFiles()
        for i in range(count):
            files.append(
                ("val" if i % 9 == 0 else "train", i % 1000, (f"c{i % 1000}/{i}.jpg", i, 5))
            )
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return files, size

    files, size = filled(20_000)
    assert size / 20_000 < 80
    assert files[9] == ("val", 9, ("c9/9.jpg", 9, 5)) and files[-1][2][1] == 19_999
    assert list(files[10:12]) == [files[10], files[11]] and len(files[19_990:30_000]) == 10
    with pytest.raises(IndexError):
        files[20_000]
    names = Files()
    names.append(("caf\udce9.jpg", 1, 2))  # bytes that are no UTF-8
    assert list(names) == [("caf\udce9.jpg", 1, 2)]
