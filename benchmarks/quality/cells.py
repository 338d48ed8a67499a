"""One cell: a base model pooled by a method at a schedule, fine-tuned, and measured on val."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import tokenpool as tp
from benchmarks.pictures import Pictures, train_base
from benchmarks.quality import schedules
from benchmarks.quality.config import POWERBERT, SQUEEZE, QualityConfig
from benchmarks.search.cache import Cache, identity
from pipelines.data.manifest import load_manifest
from pipelines.data.preprocessing import Preprocessing, preprocessing_of
from pipelines.errors import UserError
from pipelines.squeeze import squeeze
from pipelines.storage.hashes import file_hash

__all__ = ["DENSE", "METHODS", "SHAPES", "Bench", "Cell", "Row", "right_of"]

DENSE, METHODS, SHAPES = "dense", "methods", "shapes"
_PRUNING = "powerbert"  # the cost of K without clustering, as the paper's tables have it

Row = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """What is trained: the same for every seed but for the order and the augmentation.

    Attributes:
        part: which comparison it belongs to: "dense", "methods" or "shapes". A schedule can be of
            two, and is then trained once.
        shape: where the schedule comes from; "dense" for the base itself.
        share: of the dense MACs that the schedule was made for.
    """

    part: str
    width: int
    method: str
    shape: str
    share: float
    schedule: tp.Schedule
    seed: int


class Bench:
    """Models, pictures, and what was measured; goes on where it was.

    Args:
        config: of the comparison.
        directory: where bases and rows are kept.
        device: where the models run.
        say: told what takes long.
    """

    def __init__(self, config: QualityConfig, directory: Path, device: str, say: Say) -> None:
        self.config, self._say, self._device = config, say, torch.device(device)
        splits = load_manifest(config.data.path).splits
        models = [file_hash(path / "model.safetensors") for path in config.models if path.is_dir()]
        what = identity(config, _QUESTIONS, splits, device, *models)
        self._folder = directory / f"{config.name}-{what}"
        self._rows = Cache(self._folder / "rows.jsonl")
        self._bases: dict[int, nn.Module] = {}
        wanted = self._load_models()
        self.pictures = Pictures(config.data, self._device, config.batch_size, wanted)
        smallest = config.finetune_images or len(self.pictures.split("train")[0])
        if smallest < config.finetune.batch_size:
            raise UserError(
                f"an epoch of fine-tuning has {smallest} images, less than finetune.batch_size "
                f"{config.finetune.batch_size}: lower it"
            )
        for width in config.widths:
            folder = self._folder / f"base-w{width.width}-h{width.heads}"
            if config.base is not None and not (folder / "model.json").is_file():
                made, _ = train_base(
                    self.pictures, config.model, config.data.image_size, width, config.base, say
                )
                tp.save(made, folder)
            self._bases[width.width] = tp.load(folder).to(self._device)
        self.specs = {width: tp.vit_spec(model) for width, model in self._bases.items()}
        self._learnt = lru_cache(maxsize=None)(self._powerbert)

    def _load_models(self) -> Preprocessing | None:
        """Opens the models that are given; all see the same images."""
        manifest, wanted = load_manifest(self.config.data.path), None
        for path in self.config.models:
            try:
                model = tp.load(path)
            except (OSError, ValueError) as error:
                raise UserError(f"models: {path} cannot be opened: {error}") from None
            tp.pool(model, None)
            width = tp.vit_spec(model).width
            seen = preprocessing_of(model, manifest)
            if width in self._bases:
                raise UserError(
                    f"models: {path} has width {width}, as another has: give one a width"
                )
            if model.num_classes != len(manifest.classes):
                raise UserError(
                    f"models: {path} has {model.num_classes} classes, the data "
                    f"{len(manifest.classes)}: give models with a head for these"
                )
            if wanted not in (None, seen):
                raise UserError(
                    f"models: {path} wants {seen}, another {wanted}: compare them apart"
                )
            self._bases[width], wanted = model.to(self._device), seen
        return wanted

    @property
    def widths(self) -> list[int]:
        """Widest first."""
        return sorted(self.specs, reverse=True)

    def cells(self) -> Iterator[Cell]:
        """All there is to measure, seed by seed, so that a part of it can be read early."""
        for seed in range(self.config.seeds):
            for width in self.widths:
                dense = tp.Schedule.dense(self.specs[width].depth, self.specs[width].patches)
                yield Cell(DENSE, width, "", DENSE, 1.0, dense, seed)
                yield from self._at_equal_k(width, seed)
                yield from self._of_shapes(width, seed)

    def _at_equal_k(self, width: int, seed: int) -> Iterator[Cell]:
        shape = self.config.k_from
        for share in self.config.costs:
            schedule = self.schedule(width, shape, _PRUNING, share)
            if schedule is None:
                continue
            for method in self.config.methods:
                yield Cell(METHODS, width, method, shape, share, schedule, seed)

    def _of_shapes(self, width: int, seed: int) -> Iterator[Cell]:
        method = self.config.shaped
        for share in self.config.shape_costs:
            for shape in self.config.shapes:
                schedule = self.schedule(width, shape, method, share)
                if schedule is not None:
                    yield Cell(SHAPES, width, method, shape, share, schedule, seed)

    def schedule(self, width: int, shape: str, method: str, share: float) -> tp.Schedule | None:
        """Of a shape, within a share of the dense MACs by a method; None where out of its reach."""
        key = ("schedule", width, self.specs[width].heads, shape, method, share)
        known = self._rows.get(*key)
        if known is None:
            self._say(f"width {width}: {shape} at {share:.0%} of the MACs")
            found = self._made(width, shape, method, share)
            known = self._rows.put("" if found is None else str(found), *key)
        return tp.Schedule.parse(known) if known else None

    def _made(self, width: int, shape: str, method: str, share: float) -> tp.Schedule | None:
        spec = self.specs[width]

        def cost(schedule: tp.Schedule) -> float:
            return tp.vit_macs(spec, schedule, method).total

        target = share * cost(tp.Schedule.dense(spec.depth, spec.patches))
        if shape == POWERBERT:
            extract = self.config.extract
            return schedules.learnt(
                lambda penalty: self._learnt(width, penalty), cost, target, extract.runs
            )
        if shape == SQUEEZE:
            images, labels = self.pictures.split("minival")
            # In stored order the first would be of few classes.
            rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
            rows = rows[: self.config.squeeze_images].to(images.device)
            model = copy.deepcopy(self._bases[width])
            _, found = squeeze(
                model,
                [(self.pictures.normalized(images[rows]), labels[rows])],
                share,
                method=method,
                schedules=self.config.squeeze_schedules,
                most_images=self.config.squeeze_images,
                quiet=True,
            )
            return tp.Schedule(found.best.schedule)
        return schedules.by_hand(shape, spec.depth, spec.patches, cost, target)

    def _powerbert(self, width: int, penalty: float) -> tp.Schedule:
        extract, size = self.config.extract, self.config.finetune.batch_size
        images, labels = self.pictures.split("train")
        order = self.pictures.order(0, 0, extract.steps * size)
        batches = (
            (self.pictures.normalized(images[rows]), labels[rows]) for rows in order.split(size)
        )
        found = tp.powerbert_schedule(
            self._bases[width], batches, penalty, learning_rate=extract.learning_rate
        )
        return found.schedule

    def measure(self, cell: Cell) -> Row:
        """Its row, trained where it is not known yet."""
        heads = self.specs[cell.width].heads
        key = ("cell", cell.width, heads, cell.method, str(cell.schedule), cell.seed)
        known = self._rows.get(*key)
        if known is None:
            known = self._rows.put(self._train(cell), *key)
        facts = {
            "part": cell.part,
            "width": cell.width,
            "method": cell.method or DENSE,
            "shape": cell.shape,
            "share": cell.share,
            "schedule": str(cell.schedule),
            "seed": cell.seed,
        }
        return {**facts, **known}

    def _train(self, cell: Cell) -> Row:
        config = self.config
        model = copy.deepcopy(self._bases[cell.width])
        report = tp.vit_macs(self.specs[cell.width], cell.schedule, cell.method or _PRUNING)
        if cell.method:
            tp.pool(model, cell.schedule, cell.method)
        pooling = tp.pooling_of(model)
        untrained = self._right(model, cell.seed)
        begin = self.pictures.clock()
        for _ in self.pictures.train(model, config.finetune, cell.seed + 1, config.finetune_images):
            pass
        seconds = self.pictures.clock() - begin
        right = self._right(model, cell.seed)
        return {
            "gmacs": round(report.gmacs, 6),
            "gmacs_clustering": round(report.clustering / 1e9, 6),
            "top1_untrained": round(float(untrained.mean()), 5),
            "top1_minival": round(self.pictures.measure(model, "minival"), 5),
            "top1": round(float(right.mean()), 5),
            "realised": str(pooling.realised) if pooling else str(cell.schedule),
            "seconds": round(seconds, 2),
            "images": len(right),
            "right": np.packbits(right).tobytes().hex(),
        }

    def _right(self, model: nn.Module, seed: int) -> NDArray[np.bool_]:
        torch.manual_seed(seed)  # of the methods that draw
        return self.pictures.right(model, "val")


def right_of(row: Row) -> NDArray[np.bool_]:
    """`[n]` whether each image of val was told right: a row keeps it for paired intervals."""
    packed = np.frombuffer(bytes.fromhex(row["right"]), dtype=np.uint8)
    return np.unpackbits(packed, count=row["images"]).astype(np.bool_)


# What is asked, and not what the answer would be.
_QUESTIONS = (
    "methods", "k_from", "shapes", "shaped", "costs", "shape_costs", "seeds", "widths", "models",
)  # fmt: skip
