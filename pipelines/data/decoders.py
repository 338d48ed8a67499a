"""The two decoders behind the loader: FFCV's native library, and torchvision on Pillow.

Both fill rows of a batch from a beton's bytes on given boxes and flips. The second works where
FFCV cannot be built, and is what the first is tested against.
"""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from pipelines.data.beton import MODE_JPG, BetonTable
from pipelines.data.compiled import row_decoder, whole_decoder

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage


class Crops(NamedTuple):
    """Samples of a batch and how each is cut.

    `indices` [B] int64; `boxes` [B, 4] (top, left, height, width) within each image, which may be
    fractions where `beyond` is set; `flips` [B] bool. `beyond`: resizing may look at pixels beside
    the box, as if the whole image had been resized and then cropped; else it is cropped first.
    """

    indices: np.ndarray
    boxes: np.ndarray
    flips: np.ndarray
    beyond: bool = False


class Decoder(Protocol):
    """Fills rows of a batch; called by several threads at once."""

    def decode(self, crops: Crops, out: np.ndarray, start: int, stop: int) -> None:
        """Decode rows `start` to `stop` into `out` [B, H, W, 3] uint8.

        Raises:
            ValueError: a sample's bytes cannot be decoded; never leaves a stale row behind quietly.
        """


class FfcvDecoder:
    """FFCV's and libjpeg-turbo's decoders with crop and resize in one pass, without the GIL."""

    def __init__(self, table: BetonTable) -> None:
        """Raises: UserError where FFCV's library or ours is missing and cannot be built."""
        self._whole = whole_decoder()
        self._decode_rows = row_decoder().tokenpool_decode_rows
        self._table = table
        self._data = np.memmap(table.path, np.uint8, mode="r")
        self._scratch_bytes = int((table.height * table.width).max()) * 3
        self._local = threading.local()

    def decode(self, crops: Crops, out: np.ndarray, start: int, stop: int) -> None:
        scratch = getattr(self._local, "scratch", None)
        if scratch is None:
            scratch = self._local.scratch = np.empty(self._scratch_bytes, np.uint8)
        table, chosen = self._table, crops.indices[start:stop]
        status = np.full(stop - start, -1, np.int32)
        target = out[start:stop]
        if out.dtype != np.uint8 or out.shape[3] != 3 or not target.flags.c_contiguous:
            raise ValueError(f"out is not [B, H, W, 3] of contiguous bytes but {out.shape}")
        arrays = [
            np.ascontiguousarray(values, dtype)
            for values, dtype in (
                (table.pointer[chosen], np.int64),
                (table.size[chosen], np.int64),
                (table.height[chosen], np.int64),
                (table.width[chosen], np.int64),
                (table.mode[chosen], np.uint8),
                (crops.boxes[start:stop], np.float64),
            )
        ]
        mirrored = np.ascontiguousarray(crops.flips[start:stop], np.uint8)
        self._decode_rows(
            self._whole,
            self._data.ctypes.data,
            stop - start,
            *(array.ctypes.data for array in arrays),
            crops.beyond,
            mirrored.ctypes.data,
            target.ctypes.data,
            out.shape[1],
            out.shape[2],
            scratch.ctypes.data,
            status.ctypes.data,
        )
        if status.any():
            bad = int(chosen[np.flatnonzero(status)[0]])
            raise ValueError(f"sample {bad} of {table.path} cannot be decoded")


class TorchvisionDecoder:
    """Pillow decodes, torchvision crops and resizes with antialiasing."""

    def __init__(self, table: BetonTable) -> None:
        from PIL import Image

        self._table = table
        self._data = np.memmap(table.path, np.uint8, mode="r").view(np.ndarray)
        Image.MAX_IMAGE_PIXELS = None  # `prepare` let in what is here, with its own limit

    def image(self, sample: int) -> PilImage:
        """A stored image as Pillow decodes it.

        Raises:
            ValueError: its bytes cannot be decoded, or are of another size than the table says.
        """
        from PIL import Image

        table = self._table
        begin = int(table.pointer[sample])
        blob = self._data[begin : begin + int(table.size[sample])]
        if table.mode[sample] == MODE_JPG:
            try:
                image = Image.open(io.BytesIO(blob.tobytes())).convert("RGB")
            except OSError as error:
                raise ValueError(
                    f"sample {sample} of {table.path} cannot be decoded: {error}"
                ) from None
        else:
            shape = (int(table.height[sample]), int(table.width[sample]), 3)
            image = Image.fromarray(blob.reshape(shape))
        if image.size != (table.width[sample], table.height[sample]):
            raise ValueError(
                f"sample {sample} of {table.path} is {image.size[0]}×{image.size[1]}, "
                f"its beton says {table.width[sample]}×{table.height[sample]}"
            )
        return image

    def decode(self, crops: Crops, out: np.ndarray, start: int, stop: int) -> None:
        from PIL import Image
        from torchvision.transforms.v2 import functional

        size = list(out.shape[1:3])
        for row in range(start, stop):
            image = self.image(int(crops.indices[row]))
            if crops.beyond:
                top, left, height, width = (float(value) for value in crops.boxes[row])
                # Pillow minds when rounding takes the last digit beyond the edge.
                right, bottom = min(left + width, image.width), min(top + height, image.height)
                box = (left, top, right, bottom)
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box)
            else:
                corner_and_size = [int(value) for value in crops.boxes[row]]
                image = functional.crop(image, *corner_and_size)
                if corner_and_size[2:] != size:
                    image = functional.resize(image, size)
            if crops.flips[row]:
                image = functional.horizontal_flip(image)
            out[row] = np.asarray(image)


class TransformDecoder(TorchvisionDecoder):
    """Pillow decodes, and a transform of somebody else's makes of it what a model wants to see.

    Boxes and flips are not looked at: for evaluation alone.
    """

    def __init__(self, table: BetonTable, transform: Any) -> None:
        """`transform` makes a Pillow image a uint8 tensor `[3, H, W]`."""
        super().__init__(table)
        self._transform = transform

    def decode(self, crops: Crops, out: np.ndarray, start: int, stop: int) -> None:
        for row in range(start, stop):
            out[row] = self._transform(self.image(int(crops.indices[row]))).permute(1, 2, 0).numpy()
