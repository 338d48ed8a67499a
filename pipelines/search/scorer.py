"""Scores schedules without training: holds the models and the images once, answers often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import tokenpool as tp
from pipelines.config import DataConfig
from pipelines.data.augment import normalize
from pipelines.data.fetch import fetch
from pipelines.data.loader import make_loader
from pipelines.storage.copies import local_path
from pipelines.train.evaluate import evaluate

Batches = list[tuple[torch.Tensor, torch.Tensor]]
# Of each image, cross-entropy [n] float32 and whether it was told right [n] bool.
ImageScores = tuple[NDArray[np.float32], NDArray[np.bool_]]
_SHUFFLE_SEED = 0


class Scorer:
    """Runs as a Ray actor; usable without Ray as well.

    Args:
        bases: width → saved dense model (a path or an address), or the model itself.
        data: where the images are.
        batch_size: images per forward pass.
        device: where the models run.
        num_threads: threads torch computes with; None leaves them as they are.
        normalization: mean and standard deviation of each channel (of pixels in 0..1) that the
            models want; None: those of the data, as the models we train.
        most_images: of a split, spread evenly over it; None for all.
    """

    def __init__(
        self,
        bases: Mapping[int, str | torch.nn.Module],
        data: DataConfig,
        *,
        batch_size: int,
        device: str = "cpu",
        num_threads: int | None = 1,
        normalization: tuple[Sequence[float], Sequence[float]] | None = None,
        most_images: int | None = None,
    ) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._device = torch.device(device)
        self._data, self._batch_size, self._most_images = data, batch_size, most_images
        manifest = fetch(data.path, data.address)
        if normalization is None:
            normalization = manifest.mean, manifest.std
        self._mean, self._std = normalization
        self._models = {
            width: (tp.load(local_path(base)) if isinstance(base, str) else base)
            .eval()
            .to(self._device)
            for width, base in bases.items()
        }
        self._splits: dict[str, Batches] = {}
        self._dense: dict[int, list[torch.Tensor]] = {}
        self._minival: tuple[torch.Tensor, torch.Tensor] | None = None

    def score(
        self, width: int, schedules: Sequence[tuple[int, ...]], method: str
    ) -> list[tuple[float, float]]:
        """(top-1 as a fraction, mean cross-entropy) of each schedule on minival.

        All schedules see the same images, so their differences are paired.
        """
        model = self._models[width]
        results = []
        for schedule in schedules:
            pooled = tp.pool(model, schedule, method=method)
            scores = evaluate(pooled, self._batches("minival"), lambda x: x, self._device)
            results.append((scores["top1"], scores["loss"]))
        return results

    def num_images(self) -> int:
        """Of minival, as many as are scored on."""
        return sum(len(labels) for _, labels in self._batches("minival"))

    @torch.inference_mode()
    def image_scores(
        self,
        width: int,
        schedules: Sequence[tuple[int, ...]],
        method: str,
        start: int,
        stop: int,
    ) -> list[ImageScores]:
        """What each schedule makes of single images of minival.

        The images are in a random order that is always the same, so that the first of them stand
        for all, and differences between schedules are paired.

        Args:
            width: which model.
            schedules: how to pool it.
            method: of `tp.METHODS`.
            start: the first image in that order.
            stop: the one after the last.
        """
        images, labels = self._shuffled()
        parts = list(
            zip(
                images[start:stop].split(self._batch_size),
                labels[start:stop].split(self._batch_size),
                strict=True,
            )
        )
        model = self._models[width]
        found: list[ImageScores] = []
        for schedule in schedules:
            tp.pool(model, schedule, method=method)
            losses, right = [], []
            for some, wanted in parts:
                logits = model(some).float()
                losses.append(F.cross_entropy(logits, wanted, reduction="none").cpu())
                right.append((logits.argmax(1) == wanted).cpu())
            found.append((torch.cat(losses).numpy(), torch.cat(right).numpy()))
        return found

    def divergence(
        self, width: int, schedules: Sequence[tuple[int, ...]], method: str, images: int
    ) -> list[float]:
        """Mean KL divergence (nats) of each schedule's predictions from the dense model's.

        Args:
            width: which model.
            schedules: how to pool it.
            method: of `tp.METHODS`.
            images: of minival, spread evenly over it; all if there are fewer.
        """
        model = self._models[width]
        pixels = [x for x, _ in _spread(self._batches("minival"), images)]
        if width not in self._dense:
            tp.pool(model, None)
            self._dense[width] = [_log_probabilities(model, batch) for batch in pixels]
        found = []
        for schedule in schedules:
            tp.pool(model, schedule, method=method)
            total = sum(
                float(
                    F.kl_div(
                        _log_probabilities(model, batch), dense, reduction="sum", log_target=True
                    )
                )
                for batch, dense in zip(pixels, self._dense[width], strict=True)
            )
            found.append(total / sum(len(batch) for batch in pixels))
        return found

    def evaluate_saved(self, path: str, split: str) -> dict[str, float]:
        """Top-1, top-5 and loss of a saved model on a split."""
        model = tp.load(local_path(path)).eval().to(self._device)
        return evaluate(model, self._batches(split), lambda x: x, self._device)

    def _batches(self, split: str) -> Batches:
        """The split's images, decoded and normalised once."""
        if split not in self._splits:
            loader = make_loader(
                self._data.path,
                split,
                batch_size=self._batch_size,
                train=False,
                image_size=self._data.image_size,
                implementation=self._data.loader,
            )
            try:
                raw = list(loader)
                if self._most_images is not None:
                    raw = _spread(raw, self._most_images)
                self._splits[split] = [
                    (normalize(images.to(self._device), self._mean, self._std), labels)
                    for images, labels in raw
                ]
            finally:
                loader.close()
        return self._splits[split]

    def _shuffled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Minival in random order; from then on its batches are views of it, held once."""
        if self._minival is None:
            batches = self._batches("minival")
            order = np.random.default_rng(_SHUFFLE_SEED).permutation(self.num_images())
            place = torch.from_numpy(np.argsort(order))  # of each image, where it goes
            first = batches[0][0]
            images = first.new_empty((len(place), *first.shape[1:]))
            labels = torch.empty(len(place), dtype=torch.int64, device=self._device)
            begin = 0
            for index, (some, wanted) in enumerate(batches):
                where = place[begin : begin + len(wanted)].to(self._device)
                images[where], labels[where] = some, wanted.to(self._device)
                begin += len(wanted)
                batches[index] = (torch.empty(0), torch.empty(0))  # let go of, one by one
            self._splits["minival"] = list(
                zip(images.split(self._batch_size), labels.split(self._batch_size), strict=True)
            )
            self._minival = images, labels
        return self._minival


def _spread(batches: Batches, wanted: int) -> Batches:
    """`wanted` images evenly spaced over all of them: a split may be sorted by class."""
    total = sum(len(labels) for _, labels in batches)
    if wanted >= total:
        return batches
    kept, begin = [], 0
    for images, labels in batches:
        index = torch.arange(begin, begin + len(labels))
        chosen = (index + 1) * wanted // total > index * wanted // total
        if chosen.any():
            kept.append((images[chosen], labels[chosen]))
        begin += len(labels)
    return kept


@torch.inference_mode()
def _log_probabilities(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(images)
    return logits.float().log_softmax(-1)
