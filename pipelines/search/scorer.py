"""Scores schedules without training: holds the models and the images once, answers often."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import tokenpool as tp
from pipelines.config import DataConfig
from pipelines.data.fetch import fetch
from pipelines.data.preprocessing import Preprocessing, data_preprocessing
from pipelines.data.split_batches import split_batches
from pipelines.search.shared_prefixes import run_schedules
from pipelines.search.state_records import Measure
from pipelines.storage.copies import local_path
from pipelines.train.evaluate import evaluate
from pipelines.train.life_signs import EVALUATION, signs

Batches = list[tuple[torch.Tensor, torch.Tensor]]
# Of each image, its loss [n] float32 and whether it was told right [n] bool.
ImageScores = tuple[NDArray[np.float32], NDArray[np.bool_]]
Told = Callable[[int], None]
_SHUFFLE_SEED = 0


class Comparison(NamedTuple):
    """A schedule's predictions beside the dense model's, image by image.

    Attributes:
        divergence: `[n]` KL from the dense model (nats).
        agrees: `[n]` whether both name the same class.
        right: `[n]` whether the pooled one names the true class.
        dense_right: `[n]` whether the dense one does.
    """

    divergence: NDArray[np.float32]
    agrees: NDArray[np.bool_]
    right: NDArray[np.bool_]
    dense_right: NDArray[np.bool_]


class Scorer:
    """Runs as a Ray actor; usable without Ray as well.

    Args:
        bases: width → saved dense model (a path or an address), or the model itself.
        data: where the images are; None where they are given.
        batch_size: images per forward pass.
        device: where the models run.
        num_threads: threads torch computes with; None leaves them as they are.
        preprocessing: what the models' images look like; None: as the data's own, as the models
            we train.
        most_images: of a split, spread evenly over it; None for all.
        batches: minival itself, as the models want it, in place of data.
    """

    def __init__(
        self,
        bases: Mapping[int, str | torch.nn.Module],
        data: DataConfig | None,
        *,
        batch_size: int,
        device: str = "cpu",
        num_threads: int | None = 1,
        preprocessing: Preprocessing | None = None,
        most_images: int | None = None,
        batches: Batches | None = None,
    ) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._device = torch.device(device)
        self._data, self._batch_size, self._most_images = data, batch_size, most_images
        self._preprocessing = preprocessing
        if data is not None:
            manifest = fetch(data.path, data.address)
            self._preprocessing = preprocessing or data_preprocessing(manifest, data.image_size)
        self._models = {
            width: (tp.load(local_path(base)) if isinstance(base, str) else base)
            .eval()
            .to(self._device)
            for width, base in bases.items()
        }
        self._splits: dict[str, Batches] = {}
        if batches is not None:
            self._splits["minival"] = [(x.to(self._device), y) for x, y in batches]
        # The dense models' log-probabilities: by width for the first images of the random order,
        # and by width and split for the batches of a split.
        self._dense: dict[int, torch.Tensor] = {}
        self._dense_batches: dict[tuple[int, str], list[torch.Tensor]] = {}
        self._minival: tuple[torch.Tensor, torch.Tensor] | None = None
        signs.begin(EVALUATION)

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
        measure: Measure = "cross-entropy",
        told: Told | None = None,
    ) -> list[ImageScores]:
        """What each schedule makes of single images of minival.

        The images are in a random order that is always the same, so that the first of them stand
        for all, and differences between schedules are paired. What schedules begin with in common
        is computed once a batch (`run_schedules`).

        Args:
            width: which model.
            schedules: how to pool it.
            method: of `tp.METHODS`.
            start: the first image in that order.
            stop: the one after the last.
            measure: what the losses are; the divergence needs no labels.
            told: called with the number of images after every schedule of a batch.
        """
        if measure != "cross-entropy":
            found = self.beside_dense(width, schedules, method, start, stop, told)
            dense = self._dense_losses(width, start, stop) if measure == "beside dense" else 0.0
            return [(seen.divergence + dense, seen.right) for seen in found]
        images, labels = self._shuffled()
        stop = min(stop, len(labels))
        model = self._models[width]
        losses = np.empty((len(schedules), stop - start), np.float32)
        right = np.empty(losses.shape, np.bool_)
        for part in self._parts(start, stop):
            column = slice(part.start - start, part.stop - start)
            for place, logits in run_schedules(model, images[part], schedules, method):
                logits = logits.float()
                loss = F.cross_entropy(logits, labels[part], reduction="none")
                losses[place, column] = loss.cpu().numpy()
                right[place, column] = (logits.argmax(1) == labels[part]).cpu().numpy()
                signs.did()
                if told is not None:
                    told(len(logits))
        return list(zip(losses, right, strict=True))

    @torch.inference_mode()
    def beside_dense(
        self,
        width: int,
        schedules: Sequence[tuple[int, ...]],
        method: str,
        start: int,
        stop: int,
        told: Told | None = None,
    ) -> list[Comparison]:
        """Each schedule beside the dense model on a part of minival; see `image_scores`."""
        images, labels = self._shuffled()
        stop = min(stop, len(labels))
        found: list[list[Comparison]] = [[] for _ in schedules]
        for part in self._parts(start, stop):
            dense = self._dense_until(width, part.stop)[part]
            pooled = run_schedules(self._models[width], images[part], schedules, method)
            for place, logits in pooled:
                found[place].append(_comparison(logits, dense, labels[part]))
                signs.did()
                if told is not None:
                    told(len(logits))
        return [_whole(parts) for parts in found]

    def _parts(self, start: int, stop: int) -> Iterator[slice]:
        """The batches from one image to another."""
        for begin in range(start, stop, self._batch_size):
            yield slice(begin, min(begin + self._batch_size, stop))

    def divergence(
        self, width: int, schedules: Sequence[tuple[int, ...]], method: str, images: int
    ) -> list[float]:
        """Mean KL divergence (nats) of each schedule's predictions from the dense model's.

        Args:
            width: which model.
            schedules: how to pool it.
            method: of `tp.METHODS`.
            images: of minival, the first so many in random order; all if there are fewer.
        """
        found = self.image_scores(width, schedules, method, 0, images, "divergence")
        return [float(losses.mean(dtype=np.float64)) for losses, _ in found]

    @torch.inference_mode()
    def compare(
        self, width: int, schedules: Sequence[tuple[int, ...]], method: str, split: str
    ) -> list[Comparison]:
        """Each schedule beside the dense model on a split, image by image in stored order."""
        model = self._models[width]
        found: list[list[Comparison]] = [[] for _ in schedules]
        batches = self._batches(split)
        if (width, split) not in self._dense_batches:
            tp.pool(model, None)
            self._dense_batches[width, split] = [_log_probabilities(model, x) for x, _ in batches]
        for (images, labels), dense in zip(batches, self._dense_batches[width, split], strict=True):
            for place, logits in run_schedules(model, images, schedules, method):
                found[place].append(_comparison(logits, dense, labels))
        return [_whole(parts) for parts in found]

    @torch.inference_mode()
    def predictions(self, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The dense model's class of each image of minival, and the true one, in random order."""
        images, labels = self._shuffled()
        dense = self._dense_until(width, len(images))
        return dense.argmax(1).cpu().numpy(), labels.cpu().numpy()

    def minival(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels that are scored on, in the random order they are asked for in."""
        return self._shuffled()

    def evaluate_saved(self, path: str, split: str) -> dict[str, float]:
        """Top-1, top-5 and loss of a saved model on a split."""
        model = tp.load(local_path(path)).eval().to(self._device)
        scores = evaluate(model, self._batches(split), lambda x: x, self._device)
        signs.did()
        return scores

    def _batches(self, split: str) -> Batches:
        """The split's images, decoded and normalised once."""
        if split not in self._splits:
            if self._data is None or self._preprocessing is None:
                raise ValueError(f"there is no {split}: this scorer was given minival alone")
            view, loader = self._preprocessing, self._data.loader
            batches = split_batches(
                self._data.path, split, view, self._batch_size, implementation=loader
            )
            raw = list(_with_signs(batches))
            if self._most_images is not None:
                raw = _spread(raw, self._most_images)
            self._splits[split] = [
                (view(images.to(self._device)), labels) for images, labels in raw
            ]
        return self._splits[split]

    def _dense_until(self, width: int, stop: int) -> torch.Tensor:
        """The dense model's log-probabilities for the first images of the random order."""
        images, _ = self._shuffled()
        known = self._dense.get(width)
        done = 0 if known is None else len(known)
        if done < stop:
            model = tp.pool(self._models[width], None)
            parts = [
                _log_probabilities(model, x) for x in images[done:stop].split(self._batch_size)
            ]
            self._dense[width] = torch.cat(parts if known is None else [known, *parts])
        return self._dense[width]

    def _dense_losses(self, width: int, start: int, stop: int) -> NDArray[np.float32]:
        """The dense model's cross-entropy on a part of minival, in its random order."""
        _, labels = self._shuffled()
        part = slice(start, min(stop, len(labels)))
        losses: NDArray[np.float32] = (
            F.nll_loss(self._dense_until(width, stop)[part], labels[part], reduction="none")
            .cpu()
            .numpy()
        )
        return losses

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


def _with_signs(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        signs.beat()
        yield batch


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


def _comparison(logits: torch.Tensor, dense: torch.Tensor, labels: torch.Tensor) -> Comparison:
    """Of a batch: a schedule's logits beside the dense model's log-probabilities."""
    told = logits.float().log_softmax(-1)
    true = labels.to(told.device)
    return Comparison(
        _divergence(told, dense).cpu().numpy(),
        (told.argmax(1) == dense.argmax(1)).cpu().numpy(),
        (told.argmax(1) == true).cpu().numpy(),
        (dense.argmax(1) == true).cpu().numpy(),
    )


def _whole(parts: Sequence[Comparison]) -> Comparison:
    return Comparison(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _divergence(log_probabilities: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """KL `[n]` of predictions from the dense model's, both `[n, classes]` in logarithms."""
    return F.kl_div(log_probabilities, dense, reduction="none", log_target=True).sum(1)


@torch.inference_mode()
def _log_probabilities(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(images)
    return logits.float().log_softmax(-1)
