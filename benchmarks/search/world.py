"""The world all contenders live in: the same models, images and evaluations, at the same prices.

An evaluation is a schedule of a width, warm-started from that width's dense base, fine-tuned, and
measured on minival. It is charged the seconds of the device: the process's own CPU seconds on a
CPU, which a busy machine does not stretch, and synchronised wall-clock on a GPU. What a contender
thinks meanwhile (planning, Optuna's sampling) is not charged to anybody.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import tokenpool as tp
from benchmarks.pictures import Pictures, train_base
from benchmarks.search.cache import Cache, identity
from benchmarks.search.config import BenchConfig
from benchmarks.search.finetuning import Finetuning
from benchmarks.search.steps import Point, Step
from pipelines.config import DataConfig, WidthConfig
from pipelines.data.manifest import load_manifest
from pipelines.search.scorer import Scorer
from pipelines.search.state_records import MEASURE
from tune_spaces.space import Candidate, ScheduleSpace


class World:
    """Models, images and prices.

    Args:
        config: of the bench.
        directory: where bases and answers are kept; one folder per world in it.
        device: where the models run.
        say: told what takes long.
    """

    def __init__(
        self, config: BenchConfig, directory: Path, device: str, say: Callable[[str], None]
    ) -> None:
        self.config, self.device = config, torch.device(device)
        manifest = load_manifest(config.data.path)
        self.pictures = Pictures(config.data, self.device, config.batch_size)
        self.directory = (
            directory / f"{config.name}-{identity(config, _QUESTIONS, manifest.splits, device)}"
        )
        self.cache = Cache(self.directory / "answers.jsonl")
        self.heads = {w.width: w.heads for w in config.widths}
        self.specs = {width: self._spec(width) for width in self.heads}
        self.space = ScheduleSpace(
            config.model.depth,
            config.model.num_patches(config.data.image_size),
            list(self.specs),
            {config.method: self.cost},
            min_tokens=config.min_tokens,
        )
        self._say = say
        self._bases: dict[int, nn.Module] = {}
        self._scorers: dict[int, Scorer] = {}

    def cost(self, width: int, schedule: tp.Schedule) -> float:
        """GMACs of one image, clustering counted."""
        return tp.vit_macs(self.specs[width], schedule, self.config.method).gmacs

    @property
    def reference_gmacs(self) -> float:
        """The widest dense model's cost."""
        return max(self.cost(width, self.space.dense()) for width in self.specs)

    # ------------------------------------------------------------------ bases

    def base(self, width: int) -> nn.Module:
        """The trained dense model of a width."""
        if width not in self._bases:
            folder = self.directory / f"base-w{width}-h{self.heads[width]}"
            if not (folder / "model.json").is_file():
                self._train_base(width, folder)
            self._bases[width] = tp.load(folder).to(self.device)
        return self._bases[width]

    def base_point(self, width: int) -> Point:
        """A dense model, known to everybody from the start."""
        dense = self.space.dense()
        return Point(width, tuple(dense), self.cost(width, dense), self._base_row(width)["top1"])

    def base_val(self, width: int) -> float:
        """A dense model's top-1 on val; for the report, no contender sees it."""
        top1: float = self._base_row(width)["top1_val"]
        return top1

    @property
    def base_seconds(self) -> float:
        """What all bases took to train; common to all contenders."""
        return sum(self._base_row(width)["seconds"] for width in self.specs)

    def _base_row(self, width: int) -> dict[str, Any]:
        self.base(width)
        row: dict[str, Any] = self.cache.get("base", width, self.heads[width])
        return row

    def _train_base(self, width: int, folder: Path) -> None:
        config = self.config
        where = WidthConfig(width=width, heads=self.heads[width])
        model, row = train_base(
            self.pictures, config.model, config.data.image_size, where, config.base, self._say
        )
        self.cache.put(row, "base", width, self.heads[width])
        tp.save(model, folder)

    # ------------------------------------------------------------ evaluations

    def finetune(self, candidate: Candidate, seed: int) -> Finetuning:
        """An evaluation that can be stopped early."""
        return Finetuning(self, candidate, seed)

    def evaluate(self, candidate: Candidate, seed: int) -> Step:
        """A whole evaluation."""
        return self.finetune(candidate, seed).run_to(self.config.finetune.epochs)

    def score(self, width: int, schedule: tuple[int, ...]) -> tuple[float, float, float]:
        """Top-1 and loss of a schedule on part of minival, untrained; and the seconds."""

        def ask() -> list[float]:
            scorer = self._scorer(width)
            begin = self.clock()
            ((losses, right),) = scorer.image_scores(
                width, [schedule], self.config.method, 0, scorer.num_images(), MEASURE
            )
            seconds = self.clock() - begin
            return [float(right.mean()), float(losses.mean(dtype=np.float64)), seconds]

        top1, loss, seconds = self.cache.once(
            ask, "score", MEASURE, width, self.heads[width], schedule, self.config.ours.images
        )
        return top1, loss, seconds

    def divergence(self, width: int, schedule: tuple[int, ...]) -> tuple[float, float]:
        """How far a schedule's predictions are from the dense model's, and the seconds."""
        images = self.config.ours.calibrate_images

        def ask() -> list[float]:
            scorer = self._scorer(width)
            begin = self.clock()
            (found,) = scorer.divergence(width, [schedule], self.config.method, images)
            return [found, self.clock() - begin]

        found, seconds = self.cache.once(
            ask, "divergence", width, self.heads[width], schedule, images
        )
        return found, seconds

    def powerbert(self, width: int, penalty: float, seed: int) -> tuple[tuple[int, ...], float]:
        """The schedule PoWER-BERT's training finds under a penalty, and the seconds."""
        stage = self.config.powerbert

        def ask() -> list[Any]:
            model = copy.deepcopy(self.base(width))
            tp.pool(model, None)
            train = self.config.finetune
            images, labels = self.pictures.split("train")
            order = self.pictures.order(seed, 0, stage.steps * train.batch_size)
            batches = (
                (self.pictures.normalized(images[rows]), labels[rows])
                for rows in order.split(train.batch_size)
            )
            begin = self.clock()
            found = tp.powerbert_schedule(
                model, batches, penalty, learning_rate=stage.learning_rate
            )
            return [list(found.schedule), self.clock() - begin]

        key = (width, self.heads[width], penalty, seed, stage.steps, stage.learning_rate)
        counts, seconds = self.cache.once(ask, "powerbert", *key)
        return tuple(counts), seconds

    # --------------------------------------------------------------- plumbing

    def clock(self) -> float:
        """Seconds of the device so far."""
        return self.pictures.clock()

    def _scorer(self, width: int) -> Scorer:
        if width not in self._scorers:
            scorer = Scorer(
                {width: copy.deepcopy(self.base(width))},
                DataConfig(path=self.config.data.path, image_size=self.config.data.image_size),
                batch_size=self.config.batch_size,
                device=str(self.device),
                num_threads=None,
                most_images=self.config.ours.images,
            )
            # Decoded before the clock runs: no contender pays for the reading of images.
            scorer.minival()
            self._scorers[width] = scorer
        return self._scorers[width]

    def _spec(self, width: int) -> tp.VitSpec:
        side = self.config.data.image_size // self.config.model.patch_size
        return tp.VitSpec(
            width=width,
            depth=self.config.model.depth,
            grid=(side, side),
            prefix=1,
            hidden=4 * width,
            patch_in=3 * self.config.model.patch_size**2,
            classes=self.pictures.num_classes,
            heads=self.heads[width],
        )


# What is asked, and not what the answer would be. A width more or less changes no other width.
_QUESTIONS = (
    "seeds", "first_seed", "evaluations", "budget", "rates", "least_rate", "penalties",
    "top1_floor", "log_cost", "ours", "halving", "powerbert", "min_tokens",
    "widths",
)  # fmt: skip
