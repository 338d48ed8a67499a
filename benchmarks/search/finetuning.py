"""One evaluation of the bench: a schedule trained from its base, epoch by epoch, and measured."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

import tokenpool as tp
from benchmarks.search.steps import Point, Step
from tune_spaces.space import Candidate

if TYPE_CHECKING:
    from benchmarks.search.world import World


class Finetuning:
    """One evaluation, epoch by epoch; what it did before a kill is not computed again.

    Args:
        world: where it takes place.
        candidate: what is trained.
        seed: of the order of the images, the same for every contender.
    """

    def __init__(self, world: World, candidate: Candidate, seed: int) -> None:
        self._world, self._candidate, self._seed = world, candidate, seed
        self._epoch = 0
        self._model: nn.Module | None = None
        self._epochs: Iterator[tuple[int, float]] | None = None
        self._trained = 0

    def run_to(self, epoch: int) -> Step:
        """Trains up to an epoch and measures there; charges what was not charged yet."""
        row = self._known(epoch) or self._compute(epoch)
        seconds = sum(self._train_seconds(e) for e in range(self._epoch + 1, epoch + 1))
        self._epoch = epoch
        candidate = self._candidate
        point = Point(
            candidate.width, tuple(candidate.schedule), candidate.gmacs, row["top1"], epoch
        )
        return Step(seconds + row["seconds"], "finetune", point)

    def val_top1(self, epoch: int) -> float:
        """The model's top-1 on val, not charged: for the report, no contender sees it."""
        key = self._key("val", epoch)
        found = self._world.cache.get(*key)
        if found is None:
            model = self._train_to(epoch)
            found = self._world.cache.put(self._world.pictures.measure(model, "val"), *key)
        return float(found)

    def _key(self, what: str, epoch: int) -> tuple[Any, ...]:
        width, schedule = self._candidate.width, tuple(self._candidate.schedule)
        return (what, width, self._world.heads[width], schedule, self._seed, epoch)

    def _known(self, epoch: int) -> dict[str, Any] | None:
        known: dict[str, Any] | None = self._world.cache.get(*self._key("measured", epoch))
        return known

    def _train_seconds(self, epoch: int) -> float:
        seconds: float = self._world.cache.get(*self._key("trained", epoch))
        return seconds

    def _compute(self, epoch: int) -> dict[str, Any]:
        model, world = self._train_to(epoch), self._world
        begin = world.clock()
        row: dict[str, Any] = {"top1": world.pictures.measure(model, "minival")}
        row["seconds"] = world.clock() - begin
        return dict(world.cache.put(row, *self._key("measured", epoch)))

    def _train_to(self, epoch: int) -> nn.Module:
        world = self._world
        if self._model is None or self._epochs is None or self._trained > epoch:
            model = copy.deepcopy(world.base(self._candidate.width))
            self._model = tp.pool(model, self._candidate.schedule, world.config.method)
            self._epochs = world.pictures.train(
                self._model, world.config.finetune, self._seed + 1, world.config.finetune_images
            )
            self._trained = 0
        while self._trained < epoch:
            self._trained, seconds = next(self._epochs)
            key = self._key("trained", self._trained)
            if world.cache.get(*key) is None:
                world.cache.put(seconds, *key)
        return self._model
