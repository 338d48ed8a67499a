"""Batches of decoded images from a prepared directory, for one rank of a training job."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipelines.data.beton import BetonTable, read_table
from pipelines.data.compiled import native_available
from pipelines.data.decoders import (
    Crops,
    Decoder,
    FfcvDecoder,
    TorchvisionDecoder,
    TransformDecoder,
)
from pipelines.data.geometry import Geometry, centre_crops, random_resized_crops, whole_images
from pipelines.data.manifest import load_manifest, verify_beton
from pipelines.data.order import eval_order, train_order
from pipelines.data.preprocessing import CHARACTERS, EvalCut
from pipelines.data.workers import LoaderError, WorkerPool
from pipelines.errors import UserError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Implementation = Literal["ffcv", "torchvision", "auto"]
Batch = tuple["torch.Tensor", "torch.Tensor"]
_BATCHES_AHEAD = 3
_CHUNK = 16  # rows per task: small enough to spread one batch over many threads
# Characters lose their meaning when mirrored, and when much of them is cut off.
_CHARACTERS = Geometry(crop_scale=(0.7, 1.0), flip=0.0, eval_ratio=1.0)


def make_loader(
    data_dir: Path,
    split: str,
    *,
    batch_size: int,
    train: bool,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    num_threads: int = 1,
    image_size: int | None = None,
    implementation: Implementation = "auto",
    geometry: Geometry | EvalCut | Literal["auto", "stored", "crop"] = "auto",
    repeats: int = 1,
    pin_memory: bool = False,
    stall_seconds: float = 300.0,
) -> Loader:
    """Open one split for one rank.

    Training: the order and the crops are a function of (seed, epoch) alone. The global batch of a
    step is the same for every world size with the same `batch_size * world_size`; rank r takes its
    rows r, r+W, …; every rank sees equally many full batches. Evaluation: a fixed order, each
    sample exactly once over all ranks; the last batch may be short and ranks may differ by one.

    Args:
        data_dir: a directory that `tokenpool prepare` finished.
        split: "train", "minival" or "val".
        batch_size: samples per step on this rank.
        train: shuffle and crop at random, or evaluate.
        rank: 0 ≤ rank < world_size.
        world_size: ranks that share the split.
        seed: of order and crops.
        num_threads: decoding threads.
        image_size: side of the square images to give out; None: as stored.
        implementation: "ffcv"; "torchvision" where FFCV cannot be built; "auto" picks.
        geometry: "stored" gives images as stored; "crop" random-resized crops and flips in
            training and centre crops in evaluation; "auto" is "stored" where all stored images are
            squares of `image_size`, else "crop", without mirror images where the source is
            digits or glyphs; or a `Geometry` of one's own; or, for evaluation, what a model says
            it wants, which also decides the size.
        repeats: repeated augmentation, see `order.train_order`.
        pin_memory: give out page-locked memory, for asynchronous copies to a GPU; without a GPU
            nothing is locked.
        stall_seconds: without a batch for so long, an iteration raises instead of waiting.

    Raises:
        UserError: no prepared data, an altered beton, impossible sizes, or FFCV is missing.
    """
    data_dir = Path(data_dir)
    if not 0 <= rank < world_size:
        raise UserError(f"rank {rank} is not one of {world_size} ranks")
    if batch_size < 1 or num_threads < 1:
        raise UserError(f"batch_size {batch_size} and num_threads {num_threads} must be at least 1")
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size {image_size} must be at least 1")
    manifest = load_manifest(data_dir)
    path = verify_beton(data_dir, split, manifest)
    try:
        table = read_table(path)
    except ValueError as error:
        raise UserError(f"{error}: delete {data_dir} and prepare it again", exit_code=1) from None

    if isinstance(geometry, EvalCut) and train:
        raise UserError("a model's own crop is for evaluation: train with a Geometry")
    if isinstance(geometry, EvalCut):
        cut, out_size = None, geometry.size
    else:
        stored = table.uniform_size
        cut = _training_cut(geometry, stored, image_size, manifest.source)
        side = image_size or manifest.image_size
        if cut is not None and side is None:
            raise UserError(f"the images of {path} differ in size: set an image_size to crop to")
        if cut is None and (stored is None or (image_size and stored != (image_size, image_size))):
            raise UserError(
                f"the images of {path} cannot be given out as stored"
                + (f" at {image_size} px" if image_size else ": they differ in size")
                + ": use geometry crop with an image_size"
            )
        out_size = (side or 0, side or 0) if cut is not None else stored or (0, 0)

    if implementation == "auto":
        implementation = "ffcv" if native_available() else "torchvision"
        if implementation == "torchvision":
            log.warning("FFCV's library is not usable here: decoding with torchvision, slower")
    decoder: Decoder
    if isinstance(geometry, EvalCut):
        decoder = TransformDecoder(table, geometry.transform())
    elif implementation == "ffcv":
        decoder = FfcvDecoder(table)
    elif implementation == "torchvision":
        decoder = TorchvisionDecoder(table)
    else:
        raise UserError(f"loader {implementation!r} is not ffcv, torchvision or auto")
    if train and len(table) < batch_size * world_size:
        raise UserError(
            f"{path} has {len(table)} samples, fewer than one global batch of "
            f"{batch_size * world_size}: use a smaller batch size"
        )
    return Loader(
        decoder,
        table,
        out_size,
        cut,
        batch_size=batch_size,
        train=train,
        rank=rank,
        world_size=world_size,
        seed=seed,
        repeats=repeats,
        pin_memory=pin_memory,
        pool=WorkerPool(num_threads, stall_seconds=stall_seconds),
    )


def _training_cut(
    geometry: Geometry | str, stored: tuple[int, int] | None, image_size: int | None, source: str
) -> Geometry | None:
    """How images are cut that models are trained on; None where they are given out as stored."""
    if isinstance(geometry, Geometry):
        return geometry
    if geometry == "auto":
        if stored is not None and stored[0] == stored[1] and image_size in (None, stored[0]):
            return None
        return _CHARACTERS if source in CHARACTERS else Geometry()
    if geometry not in ("stored", "crop"):
        raise UserError(f"geometry {geometry!r} is not auto, stored or crop")
    return None if geometry == "stored" else Geometry()


class Loader:
    """Plans batches from seed and epoch, and keeps a few of them decoding ahead.

    Iterating yields (images uint8 [B, 3, H, W] in channels_last memory, labels int64 [B]) on the
    host. Keeping a batch is safe: its memory is used again only once nothing refers to it.
    """

    def __init__(
        self,
        decoder: Decoder,
        table: BetonTable,
        out_size: tuple[int, int],
        geometry: Geometry | None,
        *,
        batch_size: int,
        train: bool,
        rank: int,
        world_size: int,
        seed: int,
        repeats: int,
        pin_memory: bool,
        pool: WorkerPool,
    ) -> None:
        """See `make_loader`; a geometry of None keeps whole images."""
        self._decoder, self._table = decoder, table
        self._out_size, self._geometry = out_size, geometry
        self._batch_size, self._train = batch_size, train
        self._rank, self._world_size = rank, world_size
        self._seed, self._repeats = seed, repeats
        self._pin_memory = pin_memory
        self._pool: WorkerPool | None = pool
        self._epoch = self._start_step = 0
        self._buffers: list[np.ndarray] = []

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch the next iteration gives, from its `start_step`-th batch on."""
        self._epoch, self._start_step = epoch, start_step

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        if self._train:
            return len(self._table) // (self._batch_size * self._world_size)
        mine = len(range(self._rank, len(self._table), self._world_size))
        return -(-mine // self._batch_size)

    def _plan(self) -> Iterator[Crops]:
        """What the epoch's batches on this rank are made of."""
        table, geometry, count = self._table, self._geometry, len(self._table)
        if not self._train:
            for indices in eval_order(
                count, batch_size=self._batch_size, rank=self._rank, world_size=self._world_size
            )[self._start_step :]:
                height, width = table.height[indices], table.width[indices]
                if geometry is None:
                    boxes = whole_images(height, width)
                else:
                    boxes = centre_crops(height, width, geometry, self._out_size[0])
                # Evaluation resizes, then crops; training the other way round.
                yield Crops(indices, boxes, np.zeros(len(indices), np.bool_), beyond=True)
            return
        rows = train_order(
            count,
            global_batch=self._batch_size * self._world_size,
            seed=self._seed,
            epoch=self._epoch,
            repeats=self._repeats,
        )
        mine = slice(self._rank, None, self._world_size)
        for step in range(self._start_step, len(rows)):
            row = rows[step]
            height, width = table.height[row], table.width[row]
            if geometry is None:
                boxes, flips = whole_images(height, width), np.zeros(len(row), np.bool_)
            else:
                # Drawn for the global batch and then sliced: the same for every world size.
                rng = np.random.default_rng([self._seed, self._epoch, step])
                boxes = random_resized_crops(height, width, geometry, rng)
                flips = rng.random(len(row)) < geometry.flip
            yield Crops(row[mine], boxes[mine], flips[mine])

    def _start(self, crops: Crops) -> tuple[torch.Tensor, torch.Tensor, list[Future[None]]]:
        import torch

        if self._pool is None:
            raise LoaderError("the loader is closed")
        count = len(crops.indices)
        shape = (count, *self._out_size, 3)
        if self._pin_memory and torch.cuda.is_available():
            # torch's own allocator recycles page-locked memory.
            images = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
            out = images.numpy()
        else:
            out = self._free_buffer(shape)
            images = torch.from_numpy(out)
        labels = torch.from_numpy(self._table.label[crops.indices])
        futures = [
            self._pool.submit(
                partial(self._decoder.decode, crops, out, start, min(start + _CHUNK, count))
            )
            for start in range(0, count, _CHUNK)
        ]
        return images.permute(0, 3, 1, 2), labels, futures

    def _free_buffer(self, shape: tuple[int, ...]) -> np.ndarray:
        """Memory that no batch lives in any more; the kernel takes long over handing out new.

        A tensor made from an array holds a reference to it as long as its storage lives, views
        included, so an array with no other reference than ours is free.
        """
        for buffer in self._buffers:
            # Ours, the loop's and the argument's.
            if buffer.shape == shape and sys.getrefcount(buffer) == 3:
                return buffer
        if len(self._buffers) > 2 * _BATCHES_AHEAD:
            del self._buffers[0]  # its batch was kept: leave it to whoever holds it
        buffer = np.empty(shape, np.uint8)
        self._buffers.append(buffer)
        return buffer

    def __iter__(self) -> Iterator[Batch]:
        if self._pool is None:
            raise LoaderError("the loader is closed")
        pool = self._pool
        plans = self._plan()
        pending: deque[tuple[torch.Tensor, torch.Tensor, list[Future[None]]]] = deque()
        try:
            while True:
                while len(pending) < _BATCHES_AHEAD and (plan := next(plans, None)) is not None:
                    pending.append(self._start(plan))
                if not pending:
                    return
                images, labels, futures = pending.popleft()
                for future in futures:
                    pool.wait(future)
                yield images, labels
        finally:
            # Left early or failed: what is queued must not be decoded for nobody.
            for _, _, futures in pending:
                for future in futures:
                    future.cancel()

    def close(self) -> None:
        """End the threads. A loader that is closed cannot be iterated again."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __del__(self) -> None:
        # The threads hold the pool and not the loader, so a forgotten loader can end them.
        if getattr(self, "_pool", None) is not None:
            self.close()
