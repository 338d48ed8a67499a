"""FFCV's beton format (version 2) in NumPy: reading its tables, and writing it in one pass.

FFCV's own reader checks neither sizes nor pointers, and its writer can neither resume nor be given
the order of samples' bytes; both sides are a handful of fixed tables, so they are done here, and
tests hold them against FFCV's. A file is: header, one descriptor per field, one metadata row per
sample, data pages, allocation table. The fields are always `image` (RGB) and `label` (int).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

VERSION = 2
MIN_PAGE_SIZE = 1 << 21
MODE_JPG, MODE_RAW = 0, 1
_INT_FIELD, _RGB_FIELD = 1, 2
_CHUNK = 1 << 16  # samples whose rows are made at once

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype(
    [("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True
)
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
SAMPLE = np.dtype([("f0", IMAGE), ("f1", "<i8")], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])


@dataclass(frozen=True)
class BetonTable:
    """Where each of N samples lies in a beton.

    `mode` [N] uint8 (MODE_JPG or MODE_RAW), `width`, `height` [N] int64 in pixels, `pointer`,
    `size` [N] int64 in bytes, `label` [N] int64.
    """

    path: Path
    mode: np.ndarray
    width: np.ndarray
    height: np.ndarray
    pointer: np.ndarray
    size: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    @property
    def uniform_size(self) -> tuple[int, int] | None:
        """(height, width) where all samples share it, else None."""
        if len(self) and np.ptp(self.height) == 0 and np.ptp(self.width) == 0:
            return int(self.height[0]), int(self.width[0])
        return None


def read_table(path: Path) -> BetonTable:
    """Read a beton's tables and check every pointer and size against the file.

    Raises:
        ValueError: not a beton with the fields `image` and `label`, or a sample that lies outside
            the file or whose raw bytes do not fill its width and height.
    """
    file_size = path.stat().st_size
    if file_size < HEADER.itemsize + 2 * FIELD.itemsize:
        raise ValueError(f"{path} is too short to be a beton")
    header = np.fromfile(path, HEADER, count=1)[0]
    if header["version"] != VERSION or header["num_fields"] != 2:
        raise ValueError(f"{path} is not a beton of version {VERSION} with image and label")
    fields = np.fromfile(path, FIELD, count=2, offset=HEADER.itemsize)
    names = [bytes(name).split(b"\0")[0].decode("ascii", "replace") for name in fields["name"]]
    if names != ["image", "label"] or list(fields["type_id"]) != [_RGB_FIELD, _INT_FIELD]:
        raise ValueError(f"{path} has the fields {names}, not image and label")
    num_samples = int(header["num_samples"])
    metadata_start = HEADER.itemsize + 2 * FIELD.itemsize
    table_start = int(header["alloc_table_ptr"])
    metadata_end = metadata_start + num_samples * SAMPLE.itemsize
    if not metadata_end <= table_start <= file_size:
        raise ValueError(f"{path}: its allocation table lies outside the file")
    samples = np.fromfile(path, SAMPLE, count=num_samples, offset=metadata_start)
    allocations = np.fromfile(path, ALLOCATION, offset=table_start)
    if len(allocations) != num_samples:
        raise ValueError(f"{path} has {len(allocations)} allocations for {num_samples} samples")

    image = samples["f0"]
    pointer = image["data_ptr"].astype(np.int64)
    order = np.argsort(allocations["ptr"])
    allocated = allocations["ptr"][order].astype(np.int64)
    at = np.minimum(np.searchsorted(allocated, pointer), max(num_samples - 1, 0))
    if num_samples and not np.array_equal(allocated[at], pointer):
        raise ValueError(f"{path}: a sample points at bytes that were never allocated")
    size = allocations["size"][order].astype(np.int64)[at]
    mode = image["mode"].copy()
    width, height = image["width"].astype(np.int64), image["height"].astype(np.int64)
    inside = (pointer >= metadata_end) & (size > 0) & (pointer + size <= table_start)
    sane = (width > 0) & (height > 0) & ((mode == MODE_JPG) | (size == width * height * 3))
    if not (inside & sane & (mode <= MODE_RAW)).all():
        bad = int(np.flatnonzero(~(inside & sane & (mode <= MODE_RAW)))[0])
        raise ValueError(f"{path}: sample {bad} lies outside the file or has an impossible size")
    return BetonTable(path, mode, width, height, pointer, size, samples["f1"].astype(np.int64))


def lay_out(sizes: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Places of N samples of `sizes` [N] bytes, in file order, none of which crosses a page.

    FFCV's page cache needs that. Gives (pointers [N] int64, page size, position of the allocation
    table), in bytes.

    Raises:
        ValueError: a sample larger than FFCV's largest page (2 GiB).
    """
    largest = int(sizes.max(initial=1))
    if largest > 1 << 31:
        raise ValueError(f"a sample of {largest} bytes does not fit a beton page (2 GiB)")
    page_size = max(MIN_PAGE_SIZE, 1 << (largest - 1).bit_length())
    start = HEADER.itemsize + 2 * FIELD.itemsize + len(sizes) * SAMPLE.itemsize
    start = -(-start // page_size) * page_size
    pointers = np.empty(len(sizes), np.int64)
    position = start
    for first in range(0, len(sizes), _CHUNK):
        for i, size in enumerate(sizes[first : first + _CHUNK].tolist(), first):
            if position % page_size + size > page_size:
                position = -(-position // page_size) * page_size
            pointers[i] = position
            position += size
    return pointers, page_size, -(-position // page_size) * page_size


def write_beton(
    write: Callable[[bytes], object],
    samples: BetonTable,
    page_size: int,
    table_start: int,
    data: Iterable[tuple[int, bytes]],
) -> None:
    """Write a whole beton front to back, so that the caller can hash while it writes.

    Args:
        write: takes the next bytes of the file.
        samples: the rows, with pointers from `lay_out`; its `path` is not used.
        page_size: as `lay_out` gave it.
        table_start: as `lay_out` gave it.
        data: (pointer, bytes) of one or more samples that lie together, in order of the pointers.

    Raises:
        ValueError: bytes reach beyond the place of those that follow.
    """
    num_samples = len(samples)
    header = np.zeros(1, HEADER)
    header["version"], header["num_fields"] = VERSION, 2
    header["page_size"], header["num_samples"] = page_size, num_samples
    header["alloc_table_ptr"] = table_start
    fields = np.zeros(2, FIELD)
    for row, (name, type_id) in enumerate((("image", _RGB_FIELD), ("label", _INT_FIELD))):
        fields[row]["type_id"] = type_id
        fields[row]["name"][: len(name)] = np.frombuffer(name.encode("ascii"), "<u1")
    position = 0
    for part in chain((header, fields), _rows(samples)):
        write(part.tobytes())
        position += part.nbytes
    for pointer, blob in data:
        position += _pad(write, pointer - position)
        write(blob)
        position += len(blob)
    _pad(write, table_start - position)
    for first in range(0, num_samples, _CHUNK):
        mine = slice(first, first + _CHUNK)
        allocations = np.zeros(len(samples.pointer[mine]), ALLOCATION)
        allocations["sample_id"] = first + np.arange(len(allocations))
        allocations["ptr"], allocations["size"] = samples.pointer[mine], samples.size[mine]
        write(allocations.tobytes())


def _rows(samples: BetonTable) -> Iterator[np.ndarray]:
    """The metadata rows, some at a time."""
    for first in range(0, len(samples), _CHUNK):
        mine = slice(first, first + _CHUNK)
        rows = np.zeros(len(samples.label[mine]), SAMPLE)
        rows["f0"]["mode"], rows["f0"]["data_ptr"] = samples.mode[mine], samples.pointer[mine]
        rows["f0"]["width"], rows["f0"]["height"] = samples.width[mine], samples.height[mine]
        rows["f1"] = samples.label[mine]
        yield rows


def _pad(write: Callable[[bytes], object], count: int) -> int:
    if count < 0:
        raise ValueError(f"samples overlap by {-count} bytes")
    remaining = count
    while remaining > 0:
        step = min(remaining, MIN_PAGE_SIZE)
        write(bytes(step))
        remaining -= step
    return count
