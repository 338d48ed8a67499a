"""Prepared pictures held on the device, and models trained and measured on them in one process.

What a job does without what a job of days needs: checkpoints, workers, reports. The recipe is the
product's: its augmentation, optimizer, rates and loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import tokenpool as tp
from pipelines.config import DataConfig, ModelConfig, TrainConfig, WidthConfig
from pipelines.data.augment import DeviceAugment, normalize, step_generator
from pipelines.data.manifest import load_manifest
from pipelines.data.preprocessing import Preprocessing, data_preprocessing
from pipelines.data.split_batches import split_batches
from pipelines.train.engine import make_optimizer, plain_step, rate_at, set_learning_rate
from pipelines.train.evaluate import evaluate
from pipelines.train.model import init_from_scratch

__all__ = ["Pictures", "train_base"]


class Pictures:
    """The splits of prepared data, decoded once.

    Args:
        data: where they are, and their size.
        device: where they are kept and models run.
        batch_size: of a forward pass of inference.
        wanted: what the models' images look like; None: as the data's own.
    """

    def __init__(
        self,
        data: DataConfig,
        device: torch.device,
        batch_size: int,
        wanted: Preprocessing | None = None,
    ) -> None:
        manifest = load_manifest(data.path)
        self.num_classes = len(manifest.classes)
        self.device, self.batch_size = device, batch_size
        self._data = data
        self._wanted = wanted or data_preprocessing(manifest, data.image_size)
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}

    def clock(self) -> float:
        """Seconds of the device so far."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """A split's images (uint8) and labels, all of them on the device."""
        if name not in self._splits:
            data, loader = self._data, self._data.loader
            batches = split_batches(
                data.path, name, self._wanted, self.batch_size, implementation=loader
            )
            images, labels = map(torch.cat, zip(*batches, strict=True))
            self._splits[name] = images.to(self.device), labels.to(self.device)
        return self._splits[name]

    def order(self, seed: int, start: int, count: int) -> Tensor:
        """Rows of train, `start` to `start + count` of one random order of all after another."""
        return _order(len(self.split("train")[0]), seed, start, count)

    def train(
        self,
        model: nn.Module,
        train: TrainConfig,
        seed: int,
        images_per_epoch: int | None = None,
    ) -> Iterator[tuple[int, float]]:
        """Trains; yields each epoch and its device seconds."""
        images, labels = self.split("train")
        steps = (images_per_epoch or len(images)) // train.batch_size
        if not steps:
            raise ValueError(f"an epoch holds less than one batch of {train.batch_size} images")
        augment = DeviceAugment(
            train.augment,
            mean=self._wanted.mean,
            std=self._wanted.std,
            num_classes=self.num_classes,
        )
        optimizer = make_optimizer(model, train)
        model.train()
        # Dropped paths and the like; the order and the augmentation have generators of their own.
        torch.manual_seed(seed)
        for epoch in range(train.epochs):
            begin = self.clock()
            for step in range(epoch * steps, (epoch + 1) * steps):
                rows = self.order(seed, step * train.batch_size, train.batch_size)
                inputs, targets = augment(
                    images[rows], labels[rows], step_generator(seed, epoch, step)
                )
                set_learning_rate(optimizer, rate_at(train, step, steps))
                plain_step(model, optimizer, train, inputs, targets)
            yield epoch + 1, self.clock() - begin

    def measure(self, model: nn.Module, split: str) -> float:
        """Top-1 on a split."""
        return evaluate(model, self._batches(split), self.normalized, self.device)["top1"]

    @torch.inference_mode()
    def right(self, model: nn.Module, split: str) -> NDArray[np.bool_]:
        """Whether each image of a split is told right, `[n]`."""
        was = model.training
        model.eval()
        found = [
            model(self.normalized(images)).argmax(1) == labels
            for images, labels in self._batches(split)
        ]
        model.train(was)
        right: NDArray[np.bool_] = torch.cat(found).cpu().numpy()
        return right

    def normalized(self, images: Tensor) -> Tensor:
        """uint8 images as models take them."""
        return normalize(images, self._wanted.mean, self._wanted.std)

    def _batches(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self.split(split)
        return zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True)


def train_base(
    pictures: Pictures,
    model: ModelConfig,
    image_size: int,
    width: WidthConfig,
    train: TrainConfig,
    say: Callable[[str], None],
) -> tuple[nn.Module, dict[str, float]]:
    """A dense DeiT from scratch.

    Args:
        pictures: it is trained and measured on.
        model: its depth and patch size.
        image_size: side of the images in pixels.
        width: its width and heads.
        train: the recipe.
        say: told of every fourth epoch.

    Returns:
        The model, and `{seconds, top1, top1_val}`: of the device, on minival, on val.
    """
    torch.manual_seed(0)
    made = init_from_scratch(
        tp.build_vit(
            image_size,
            model.patch_size,
            width.width,
            model.depth,
            width.heads,
            pictures.num_classes,
        )
    ).to(pictures.device)
    seconds = 0.0
    for epoch, taken in pictures.train(made, train, 0):
        seconds += taken
        if epoch % 4 == 0 or epoch == train.epochs:
            top1 = pictures.measure(made, "minival")
            say(f"base of width {width.width}: epoch {epoch}, top-1 {top1:.2%}, {seconds:.0f}s")
    return made, {
        "seconds": seconds,
        "top1": pictures.measure(made, "minival"),
        "top1_val": pictures.measure(made, "val"),
    }


def _order(total: int, seed: int, start: int, count: int) -> Tensor:
    rows, position = [], start
    while position < start + count:
        lap, offset = divmod(position, total)
        order = torch.randperm(total, generator=step_generator(seed, lap, -1))
        part = order[offset : offset + start + count - position]
        rows.append(part)
        position += len(part)
    return torch.cat(rows)
