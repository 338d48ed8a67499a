"""The loop over a batch around FFCV's native decoder, compiled once per machine by numba.

The C functions are bound by symbol name, not by address, which is what lets numba keep the
compiled loop on disk: a fresh process loads it in a fraction of a second. The loop runs without
the GIL, so a training loop that keeps Python busy does not slow the decoding threads down.
"""

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import numba
import numpy as np
from numba.core import types

from pipelines.data.native import symbol_address

llvm.add_symbol("tokenpool_ffcv_imdecode", symbol_address("imdecode"))
llvm.add_symbol("tokenpool_ffcv_resize", symbol_address("resize"))

_imdecode = types.ExternalFunction(
    "tokenpool_ffcv_imdecode",
    types.int32(
        types.uintp, types.uint64, types.uint32, types.uint32,  # source, its size, height, width
        types.uintp, types.uint32, types.uint32,  # destination, crop height, crop width
        types.uint32, types.uint32, types.uint32, types.uint32,  # offset x, y, scale num, denom
        types.uint8, types.uint8,  # crop, flip
    ),
)  # fmt: skip
_resize = types.ExternalFunction("tokenpool_ffcv_resize", types.void(*[types.int64] * 11))

_JPG = np.uint8(0)


@numba.njit(
    numba.void(
        types.Array(types.uint8, 1, "C", readonly=True),
        *[types.Array(types.int64, 1, "C")] * 4,
        types.Array(types.uint8, 1, "C"),
        types.Array(types.int64, 2, "C"),
        types.Array(types.boolean, 1, "C"),
        types.Array(types.uint8, 4, "C"),
        types.Array(types.uint8, 1, "C"),
        types.Array(types.int32, 1, "C"),
        types.int64,
        types.int64,
    ),
    cache=True,
    nogil=True,
    error_model="numpy",
)
def decode_range(  # type: ignore[no-untyped-def]
    data, pointer, size, height, width, mode, boxes, flips, out, scratch, status, start, stop
):
    """Decode, crop, resize and flip rows `start` to `stop` of a batch.

    Args:
        data: [file bytes] uint8.
        pointer: [B] int64, as `size`, `height` and `width`: where each sample lies.
        mode: [B] uint8.
        boxes: [B, 4] int64 (top, left, height, width) within each image.
        flips: [B] bool.
        out: [B, H, W, 3] uint8, filled.
        scratch: [largest image's bytes] uint8, one per thread.
        status: [B] int32, 0 where a row was filled, else the decoder's code.
    """
    out_height, out_width = out.shape[1], out.shape[2]
    for i in range(start, stop):
        rows, columns = height[i], width[i]
        source = data.ctypes.data + pointer[i]
        if mode[i] == _JPG:
            code = _imdecode(
                source, size[i], rows, columns, scratch.ctypes.data, rows, columns,
                0, 0, 1, 1, 0, 0,
            )  # fmt: skip
            if code != 0:
                status[i] = code
                continue
            source = scratch.ctypes.data
        top, left, box_height, box_width = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
        if box_height == out_height and box_width == out_width:
            # Nothing to resample: copy the rows, bit for bit.
            for y in range(out_height):
                begin = ((top + y) * columns + left) * 3
                row = out[i, y].reshape(-1)
                if mode[i] == _JPG:
                    row[:] = scratch[begin : begin + out_width * 3]
                else:
                    begin += pointer[i]
                    row[:] = data[begin : begin + out_width * 3]
        else:
            _resize(
                0, source, rows, columns, top, top + box_height, left, left + box_width,
                out[i].ctypes.data, out_height, out_width,
            )  # fmt: skip
        if flips[i]:
            for y in range(out_height):
                for x in range(out_width // 2):
                    for channel in range(3):
                        mirrored = out_width - 1 - x
                        swap = out[i, y, x, channel]
                        out[i, y, x, channel] = out[i, y, mirrored, channel]
                        out[i, y, mirrored, channel] = swap
        status[i] = 0
