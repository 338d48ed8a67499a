"""Shards' tables as columns: what was written, in few bytes an image."""

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.assemble import assemble, find_absent_classes, find_rejected, split_rows
from pipelines.data.options import PrepareOptions
from pipelines.data.shard_rows import coded, hexadecimal, in_chunks, read_rows
from pipelines.data.shards import schema, shard_paths
from pipelines.data.sources.base import Source
from pipelines.data.sources.file_list import Files, LabelledFiles
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
                "width": 60_000,
                "height": 65_535,
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
    assert len(rows) == sum(sizes)
    assert rows.shard.tolist() == [n for n, size in enumerate(sizes) for _ in range(size)]
    assert [rows.name(i) for i in range(len(rows))] == [row["name"] for row in written]
    for name in schema().names:
        if name not in ("name", "source_sha1"):
            assert rows[name].tolist() == [row[name] for row in written]
    assert hexadecimal(rows["source_sha1"]).to_pylist() == [
        row["source_sha1"].hex() for row in written
    ]


def test_digests_that_end_in_zeros_stay_whole(tmp_path):
    """NumPy cuts zeros off such texts where they are taken one by one."""
    digests = [bytes(20), b"a" + bytes(19), bytes(19) + b"a", b"\xff" * 20]
    column = np.frombuffer(b"".join(digests), "S20")
    assert hexadecimal(column).to_pylist() == [digest.hex() for digest in digests]
    assert len(np.unique(column)) == 4


def test_some_rows_are_kept(tmp_path):
    write_shards(tmp_path, [40, 60])
    rows = read_rows(tmp_path, 2)
    mask = np.arange(100) % 7 == 0
    kept = rows.keep(mask)
    assert [kept.name(i) for i in range(len(kept))] == [rows.name(i) for i in np.flatnonzero(mask)]
    assert kept.shard.tolist() == rows.shard[mask].tolist()
    assert kept["sum_g"].tolist() == np.flatnonzero(mask).astype(float).tolist()
    assert rows.keep(np.ones(100, bool)) is rows


def test_texts_by_position_and_numbers_in_chunks():
    assert coded(np.array([2, 0, 2]), ["a", "b", "c"]).to_pylist() == ["c", "a", "c"]
    long = np.arange(200_000)
    assert list(in_chunks(long, -long)) == list(zip(long.tolist(), (-long).tolist(), strict=True))


def make(folder: Path, images: int) -> int:
    """Peak bytes of putting so many images together, as `prepare` does when all shards are made."""
    sizes = [250] * (images // 250)
    write_shards(folder / "shards", sizes, images=True)
    source = Source("s", [f"n{i:08d}" for i in range(5)], [])
    options = PrepareOptions(workers=1, minival=0.1)
    tracemalloc.start()
    arrow = pa.total_allocated_bytes()
    rows = read_rows(folder / "shards", len(sizes))
    splits = split_rows(rows, source, options)
    reasons, copies = find_rejected(rows, splits, source.classes)
    find_absent_classes(rows, splits, reasons, source.classes)
    good = reasons == ""
    kept = rows.keep(good)
    summarize(source, splits[good], kept["label"], kept["converted"], [])
    assert copies == 0 and good.sum() == images - images // 50
    held = pa.total_allocated_bytes() - arrow
    assemble(source, options, kept, splits[good], folder)
    peak = tracemalloc.get_traced_memory()[1] + held
    tracemalloc.stop()
    return peak


def test_memory_grows_by_some_hundred_bytes_an_image(tmp_path):
    """As objects it was 1,800; a million images must fit beside everything else."""
    small, large = make(tmp_path / "a", 5_000), make(tmp_path / "b", 25_000)
    assert (large - small) / 20_000 < 700


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
