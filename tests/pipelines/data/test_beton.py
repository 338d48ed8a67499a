"""The beton format, held against FFCV's own reader and loader."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.beton import MIN_PAGE_SIZE, lay_out, read_table
from pipelines.data.loader import make_loader


@given(st.lists(st.integers(1, 3 * MIN_PAGE_SIZE), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_no_sample_crosses_a_page_or_another_sample(sizes):
    pointers, page_size, end = lay_out(np.array(sizes))
    stops = pointers + np.array(sizes)
    assert (pointers[1:] >= stops[:-1]).all() and stops[-1] <= end
    assert (pointers // page_size == (stops - 1) // page_size).all()
    assert page_size & (page_size - 1) == 0 and page_size >= max(sizes)


@pytest.mark.parametrize("split", ["train", "val"])
def test_ffcv_reads_the_same_tables(prepared_photos, split):
    from ffcv.reader import Reader

    path = prepared_photos / f"{split}.beton"
    ours, theirs = read_table(path), Reader(str(path))
    image = theirs.metadata["f0"]
    assert theirs.field_names == ["image", "label"]
    for name, column in (
        ("width", ours.width),
        ("height", ours.height),
        ("mode", ours.mode),
        ("data_ptr", ours.pointer),
    ):
        np.testing.assert_array_equal(image[name], column)
    np.testing.assert_array_equal(theirs.metadata["f1"], ours.label)
    np.testing.assert_array_equal(np.sort(theirs.alloc_table["ptr"]), np.sort(ours.pointer))


def test_a_file_written_by_ffcv_is_read(tmp_path):
    """FFCV's own writer, with its own allocation order, as the other side."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    images = np.random.default_rng(0).integers(0, 256, (50, 8, 9, 3)).astype(np.uint8)

    class Data:
        def __len__(self):
            return len(images)

        def __getitem__(self, i):
            return images[i], i % 7

    path = tmp_path / "ffcv.beton"
    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Data())
    table = read_table(path)
    data = np.fromfile(path, np.uint8)
    assert table.uniform_size == (8, 9)
    for i in (0, 17, 49):
        stored = data[table.pointer[i] : table.pointer[i] + table.size[i]]
        np.testing.assert_array_equal(stored.reshape(8, 9, 3), images[i])
        assert table.label[i] == i % 7


def _patched(path, tmp_path, change):
    data = bytearray(path.read_bytes())
    change(data)
    bad = tmp_path / "bad.beton"
    bad.write_bytes(data)
    return bad


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"\x09\x00", "version"),
        (16, b"\xff" * 8, "outside the file"),  # allocation table
    ],
)
def test_broken_headers_are_refused(digits, tmp_path, offset, value, message):
    def change(data):
        data[offset : offset + len(value)] = value

    with pytest.raises(ValueError, match=message):
        read_table(_patched(digits / "val.beton", tmp_path, change))


@pytest.mark.parametrize("field", ["width", "data_ptr"])
def test_a_sample_that_points_elsewhere_is_refused(digits, tmp_path, field):
    from pipelines.data.beton import FIELD, HEADER, SAMPLE

    def change(data):
        start = HEADER.itemsize + 2 * FIELD.itemsize
        row = np.frombuffer(bytes(data[start : start + SAMPLE.itemsize]), SAMPLE).copy()
        row["f0"][field] += 1
        data[start : start + SAMPLE.itemsize] = row.tobytes()

    with pytest.raises(ValueError, match=r"sample 0|never allocated"):
        read_table(_patched(digits / "val.beton", tmp_path, change))


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "x.beton").touch()
    with pytest.raises(ValueError, match="too short"):
        read_table(tmp_path / "x.beton")


FFCVS_LOADER = """
import sys
import subprocess
import sys

import numpy as np
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import ToTensor, ToTorchImage

loader = Loader(
    sys.argv[1],
    64,
    1,
    order=OrderOption.SEQUENTIAL,
    drop_last=False,
    pipelines={
        "image": [SimpleRGBImageDecoder(), ToTensor(), ToTorchImage()],
        "label": [IntDecoder(), ToTensor()],
    },
)
batches = [(x.numpy().copy(), y.numpy().copy()) for x, y in loader]
np.savez(
    sys.argv[2],
    images=np.concatenate([x for x, _ in batches]),
    labels=np.concatenate([y[:, 0] for _, y in batches]),
)
"""


def test_ffcvs_own_loader_gives_the_same_batches(digits, tmp_path):
    # In a process of its own: FFCV's loader sets `mutable` on types that numba shares between
    # all users, after which no loop compiled before it in the same process is found again.
    out = tmp_path / "theirs.npz"
    command = [sys.executable, "-c", FFCVS_LOADER, str(digits / "val.beton"), str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    theirs = np.load(out)
    ours = make_loader(digits, "val", batch_size=64, train=False)
    batches = list(ours)
    ours.close()
    assert (np.concatenate([x.numpy() for x, _ in batches]) == theirs["images"]).all()
    assert (np.concatenate([y.numpy() for _, y in batches]) == theirs["labels"]).all()
    assert len(theirs["labels"]) == 359
