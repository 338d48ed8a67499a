"""The loop over a batch around FFCV's native decoder, compiled once per machine by numba.

The C function is bound by symbol name, not by address, which is what lets numba keep the compiled
loop on disk: a fresh process loads it in a fraction of a second. The loop runs without the GIL, so
a training loop that keeps Python busy does not slow the decoding threads down.

Crop, resize and flip are one pass here, a third of the time that the library's own `resize`
(OpenCV's INTER_AREA) takes, and with Pillow's antialiased bilinear weights: what comes out equals
torchvision's to rounding, where INTER_AREA turns blocky as soon as it has to enlarge.
"""

from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import numba
import numpy as np
from numba.core import types

from pipelines.data.jpeg_region import region_function
from pipelines.data.native import symbol_address

llvm.add_symbol("tokenpool_ffcv_imdecode", symbol_address("imdecode"))
# Where it could not be built the name still has to stand for something; it is never called then.
llvm.add_symbol("tokenpool_decode_region", region_function() or symbol_address("imdecode"))

_imdecode = types.ExternalFunction(
    "tokenpool_ffcv_imdecode",
    types.int32(
        types.uintp, types.uint64, types.uint32, types.uint32,  # source, its size, height, width
        types.uintp, types.uint32, types.uint32,  # destination, crop height, crop width
        types.uint32, types.uint32, types.uint32, types.uint32,  # offset x, y, scale num, denom
        types.uint8, types.uint8,  # crop, flip
    ),
)  # fmt: skip
_decode_region = types.ExternalFunction(
    "tokenpool_decode_region",
    types.int32(
        types.uintp, types.uint64, types.uint32, types.uint32,  # source, its size, width, height
        types.uint32,  # 1 / scale
        types.uint32, types.uint32, types.uint32, types.uint32,  # left, top, columns, rows
        types.uintp, types.uintp,  # destination, region written
    ),
)  # fmt: skip

_JPG = np.uint8(0)
_COMPILED: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": True}


@numba.njit(**_COMPILED)
def _weights(begin, extent, limit, out_size):  # type: ignore[no-untyped-def]
    """Pillow's bilinear filter along one axis.

    Args:
        begin: where the box begins in the source, pixels, may be a fraction.
        extent: the box's length.
        limit: (first, one past last) source pixel that may be used.
        out_size: length of the result.

    Returns:
        (first tap [out], number of taps [out], weights [out, most taps] float32 summing to 1).
    """
    scale = extent / out_size
    support = max(scale, 1.0)
    most = int(np.ceil(support)) * 2 + 1
    first = np.empty(out_size, np.int64)
    count = np.empty(out_size, np.int64)
    weights = np.zeros((out_size, most), np.float32)
    for i in range(out_size):
        centre = begin + (i + 0.5) * scale
        low = max(int(np.floor(centre - support + 0.5)), limit[0])
        high = min(int(np.floor(centre + support + 0.5)), limit[1])
        low = min(low, limit[1] - 1)
        high = max(high, low + 1)
        total = 0.0
        for tap in range(high - low):
            weight = max(0.0, 1.0 - abs((low + tap - centre + 0.5) / support))
            weights[i, tap] = weight
            total += weight
        if total > 0:
            for tap in range(high - low):
                weights[i, tap] /= total
        else:
            weights[i, 0] = 1.0
        first[i], count[i] = low, high - low
    return first, count, weights


@numba.njit(**_COMPILED)
def _mix_rows(pixels, stride, begin, first, count, weights, line):  # type: ignore[no-untyped-def]
    """Weighted sum of `count` rows from `first` on into `line`: contiguous, so vectorised."""
    length = len(line)
    base = first * stride + begin
    row, weight = pixels[base : base + length], weights[0]
    if count == 1:
        for j in range(length):
            line[j] = weight * np.float32(row[j])
        return
    second, weight2 = pixels[base + stride : base + stride + length], weights[1]
    for j in range(length):
        line[j] = weight * np.float32(row[j]) + weight2 * np.float32(second[j])
    for tap in range(2, count):
        base += stride
        row, weight = pixels[base + stride : base + stride + length], weights[tap]
        for j in range(length):
            line[j] += weight * np.float32(row[j])


@numba.njit(**_COMPILED)
def _resample(pixels, columns, origin, top, left, height, width, limits, flip, out):  # type: ignore[no-untyped-def]
    """Crop, resize and mirror one image.

    Args:
        pixels: [rows · columns · 3] uint8, the source or a part of it.
        columns: of that part.
        origin: (row, column) of the source where the part begins.
        top: of the box, likewise `left`, `height`, `width`; float.
        limits: (first row, last row + 1, first column, last column + 1) that may be read.
        flip: mirror left to right.
        out: [H, W, 3] uint8, filled.
    """
    out_height, out_width = out.shape[0], out.shape[1]
    row_first, row_count, row_weights = _weights(top, height, (limits[0], limits[1]), out_height)
    first, count, weights = _weights(left, width, (limits[2], limits[3]), out_width)
    flat, most = weights.reshape(-1), np.uintp(weights.shape[1])
    row_first -= origin[0]
    begin, stride = (limits[2] - origin[1]) * 3, columns * 3
    length = (limits[3] - limits[2]) * 3
    line0, line1 = np.empty(length, np.float32), np.empty(length, np.float32)
    line2, line3 = np.empty(length, np.float32), np.empty(length, np.float32)
    # Unsigned, for numba tests every signed index for being negative.
    one, two, three = np.uintp(1), np.uintp(2), np.uintp(3)
    half = np.float32(0.5)
    # Four rows at a time share the loads of the horizontal weights; written out, because numba
    # keeps small arrays of accumulators in memory and not in registers.
    for y0 in range(0, out_height, 4):
        y1 = min(y0 + 1, out_height - 1)
        y2 = min(y0 + 2, out_height - 1)
        y3 = min(y0 + 3, out_height - 1)
        _mix_rows(pixels, stride, begin, row_first[y0], row_count[y0], row_weights[y0], line0)
        _mix_rows(pixels, stride, begin, row_first[y1], row_count[y1], row_weights[y1], line1)
        _mix_rows(pixels, stride, begin, row_first[y2], row_count[y2], row_weights[y2], line2)
        _mix_rows(pixels, stride, begin, row_first[y3], row_count[y3], row_weights[y3], line3)
        row0, row1 = out[y0].reshape(-1), out[y1].reshape(-1)
        row2, row3 = out[y2].reshape(-1), out[y3].reshape(-1)
        for x in range(np.uintp(out_width)):
            at = np.uintp((first[x] - limits[2]) * 3)
            taps = x * most
            weight = flat[taps]
            red0 = half + weight * line0[at]
            green0 = half + weight * line0[at + one]
            blue0 = half + weight * line0[at + two]
            red1 = half + weight * line1[at]
            green1 = half + weight * line1[at + one]
            blue1 = half + weight * line1[at + two]
            red2 = half + weight * line2[at]
            green2 = half + weight * line2[at + one]
            blue2 = half + weight * line2[at + two]
            red3 = half + weight * line3[at]
            green3 = half + weight * line3[at + one]
            blue3 = half + weight * line3[at + two]
            for tap in range(one, np.uintp(count[x])):
                weight = flat[taps + np.uintp(tap)]
                at += three
                red0 += weight * line0[at]
                green0 += weight * line0[at + one]
                blue0 += weight * line0[at + two]
                red1 += weight * line1[at]
                green1 += weight * line1[at + one]
                blue1 += weight * line1[at + two]
                red2 += weight * line2[at]
                green2 += weight * line2[at + one]
                blue2 += weight * line2[at + two]
                red3 += weight * line3[at]
                green3 += weight * line3[at + one]
                blue3 += weight * line3[at + two]
            # Weights are non-negative and sum to one, so nothing leaves 0..255.5 and a bit.
            to = np.uintp(out_width - 1 - x if flip else x) * three
            row0[to] = np.uint8(red0)
            row0[to + one] = np.uint8(green0)
            row0[to + two] = np.uint8(blue0)
            row1[to] = np.uint8(red1)
            row1[to + one] = np.uint8(green1)
            row1[to + two] = np.uint8(blue1)
            row2[to] = np.uint8(red2)
            row2[to + one] = np.uint8(green2)
            row2[to + two] = np.uint8(blue2)
            row3[to] = np.uint8(red3)
            row3[to + one] = np.uint8(green3)
            row3[to + two] = np.uint8(blue3)


@numba.njit(**_COMPILED)
def _copy(pixels, columns, top, left, flip, out):  # type: ignore[no-untyped-def]
    """A box of the size of `out`, bit for bit."""
    out_height, out_width = out.shape[0], out.shape[1]
    for y in range(out_height):
        begin = ((top + y) * columns + left) * 3
        if flip:
            for x in range(out_width):
                at = begin + (out_width - 1 - x) * 3
                for channel in range(3):
                    out[y, x, channel] = pixels[at + channel]
        else:
            out[y].reshape(-1)[:] = pixels[begin : begin + out_width * 3]


@numba.njit(
    numba.void(
        types.Array(types.uint8, 1, "C"),
        *[types.Array(types.int64, 1, "C")] * 4,
        types.Array(types.uint8, 1, "C"),
        types.Array(types.int64, 2, "C"),
        types.Array(types.boolean, 1, "C"),
        types.Array(types.uint8, 4, "C"),
        types.Array(types.uint8, 1, "C"),
        types.Array(types.int32, 1, "C"),
        types.boolean,
    ),
    **_COMPILED,
)
def decode_rows(  # type: ignore[no-untyped-def]
    data, pointer, size, height, width, mode, boxes, flips, out, scratch, status, regions
):
    """Decode, crop, resize and flip some rows of a batch.

    Of a JPEG only the box is decoded, where that is less than the whole. JPEGs much larger than
    asked for are decoded at a half, quarter or eighth of their size, as long as the box keeps half
    as many pixels again as are given out along each side.

    Args:
        data: [file bytes] uint8.
        pointer: [B] int64, as `size`, `height` and `width`: where each sample lies.
        mode: [B] uint8.
        boxes: [B, 4] int64 (top, left, height, width) within each image.
        flips: [B] bool.
        out: [B, H, W, 3] uint8, filled.
        scratch: [largest image's bytes] uint8, one per thread.
        status: [B] int32, 0 where a row was filled, else the decoder's code.
        regions: whether boxes can be decoded by themselves; if not, whole pictures are.
    """
    out_height, out_width = out.shape[1], out.shape[2]
    region = np.zeros(4, np.int64)
    for i in range(len(pointer)):
        rows, columns = height[i], width[i]
        top, left, box_height, box_width = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
        factor = 1
        if mode[i] == _JPG:
            while (
                factor < 8
                and box_height >= 3 * factor * out_height
                and box_width >= 3 * factor * out_width
            ):
                factor *= 2
            rows, columns = -(-rows // factor), -(-columns // factor)
        first_row, end_row = top // factor, min(-(-(top + box_height) // factor), rows)
        first_column, end_column = left // factor, min(-(-(left + box_width) // factor), columns)
        from_row, from_column = 0, 0
        if mode[i] == _JPG:
            source = data.ctypes.data + pointer[i]
            box_rows, box_columns = end_row - first_row, end_column - first_column
            if regions and (box_rows < rows or box_columns < columns):
                code = _decode_region(
                    source, size[i], width[i], height[i], factor, first_column, first_row,
                    box_columns, box_rows, scratch.ctypes.data, region.ctypes.data,
                )  # fmt: skip
                from_column, from_row, columns = region[0], region[1], region[2]
            else:
                code = _imdecode(
                    source, size[i], height[i], width[i], scratch.ctypes.data,
                    height[i], width[i], 0, 0, 1, factor, 0, 0,
                )  # fmt: skip
            if code != 0:
                status[i] = code
                continue
        pixels = scratch if mode[i] == _JPG else data[pointer[i] : pointer[i] + size[i]]
        if box_height == out_height and box_width == out_width and factor == 1:
            _copy(pixels, columns, top - from_row, left - from_column, flips[i], out[i])
        else:
            limits = (first_row, end_row, first_column, end_column)
            _resample(
                pixels, columns, (from_row, from_column), top / factor, left / factor,
                box_height / factor, box_width / factor, limits, flips[i], out[i],
            )  # fmt: skip
        status[i] = 0
