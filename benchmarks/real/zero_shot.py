"""What each method loses at each cost under each shape of schedule, without training."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tokenpool as tp
from benchmarks.machine import hardware
from benchmarks.real.bootstrap import mean_interval
from benchmarks.real.planned import planned_schedule
from pipelines.config import DataConfig
from pipelines.data.manifest import load_manifest
from pipelines.data.preprocessing import preprocessing_of
from pipelines.errors import UserError
from pipelines.search.scorer import Comparison, Scorer
from pipelines.search.timing import seconds_of
from pipelines.storage.durable import write_text
from pipelines.storage.hashes import text_hash
from tune_spaces.shapes import shapes

__all__ = ["PLANNED", "SHAPES", "SHARES", "Bench", "Row", "Rows", "judge", "run_grid", "time_again"]

SHARES = (0.6, 0.5, 0.4, 0.3)
PLANNED = "planned"
SHAPES = ("constant rate", "constant number", "power -1", "power -0.5", "power +0.5", "power +1")
_BATCH = 32
_TIMED = 2

Row = dict[str, Any]


class Rows:
    """Results as JSON lines, with each picture's divergence beside them in the cache.

    Args:
        path: of the rows; what is there stays, and is not measured again.
        per_image: folder of the arrays that paired intervals are made from.
    """

    def __init__(self, path: Path, per_image: Path) -> None:
        self._path, self._per_image = path, per_image
        text = path.read_text() if path.exists() else ""
        # A line that a kill cut short has no end.
        whole = text[: text.rfind("\n") + 1]
        self.rows: list[Row] = [json.loads(line) for line in whole.splitlines()]
        if whole != text:
            path.write_text(whole)

    def __contains__(self, key: Row) -> bool:
        return any(all(row.get(k) == v for k, v in key.items()) for row in self.rows)

    def add(self, row: Row, seen: Comparison) -> None:
        """Keeps one result."""
        self._per_image.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(self._array(row), **seen._asdict())
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)

    def rewrite(self) -> None:
        """Stores rows that were changed; the old ones stay until the new ones are whole."""
        write_text(self._path, "".join(f"{json.dumps(row)}\n" for row in self.rows))

    def seen(self, row: Row) -> Comparison | None:
        """Of a row, what was seen of single pictures; None where the cache is not this one's."""
        path = self._array(row)
        if not path.exists():
            return None
        with np.load(path) as stored:
            return Comparison(**{name: stored[name] for name in Comparison._fields})

    def _array(self, row: Row) -> Path:
        return self._per_image / f"{text_hash(_key_text(row), 24)}.npz"


_KEY = ("data", "image_size", "images", "method", "share", "shape")


def _key_text(row: Row) -> str:
    return json.dumps([row[name] for name in _KEY])


@dataclass(frozen=True)
class Bench:
    """A model with pictures to judge it on.

    Attributes:
        model_path: a saved dense model.
        prepared: a prepared folder.
        image_size: of the model.
        images: of val, spread evenly over it.
        cache: where calibrations are kept.
    """

    model_path: Path
    prepared: Path
    image_size: int
    images: int
    cache: Path

    @cached_property
    def model(self) -> Any:
        """The model, which the scorer pools and pools again."""
        return tp.load(self.model_path)

    @cached_property
    def spec(self) -> tp.VitSpec:
        """Its shapes."""
        return tp.vit_spec(self.model)

    @cached_property
    def dense_macs(self) -> int:
        """Of one picture."""
        return tp.vit_macs(self.spec, tp.Schedule.dense(self.spec.depth, self.spec.patches)).total

    @cached_property
    def scorer(self) -> Scorer:
        """Holds the pictures."""
        return Scorer(
            {self.spec.width: self.model},
            DataConfig(path=self.prepared, image_size=self.image_size),
            batch_size=_BATCH,
            num_threads=None,
            preprocessing=preprocessing_of(self.model, load_manifest(self.prepared)),
            most_images=self.images,
        )

    @cached_property
    def pixels(self) -> torch.Tensor:
        """A batch of noise, which takes as long as pictures do."""
        return torch.randn(_BATCH, 3, self.image_size, self.image_size)

    def facts(self, method: str, share: float) -> Row:
        """What a row is known by, beside its shape."""
        return {
            "data": self.prepared.name,
            "image_size": self.image_size,
            "images": self.images,
            "method": method,
            "share": share,
        }

    def schedules(self, method: str, share: float, names: Sequence[str]) -> dict[str, tp.Schedule]:
        """Those of the named shapes that reach a share of the dense cost by a method."""
        target = share * self.dense_macs
        found = shapes(
            self.spec.depth,
            self.spec.patches,
            lambda schedule: tp.vit_macs(self.spec, schedule, method).total,
            target,
        )
        found = {name: schedule for name, schedule in found.items() if name in names}
        if PLANNED in names:
            planned = planned_schedule(self.scorer, self.spec, method, target, self._calibration)
            if planned is not None:
                found[PLANNED] = planned
        return found

    def milliseconds(self, schedule: tp.Schedule | None, method: str) -> float:
        """Of one picture in a batch of 32; the least of two runs."""
        pooled = tp.pool(self.model, schedule, method=method)
        with torch.inference_mode():
            took = [seconds_of(lambda: pooled(self.pixels), "cpu") for _ in range(_TIMED)]
        return 1e3 * min(took) / _BATCH

    @property
    def _calibration(self) -> Path:
        return self.cache / "calibrations" / f"{self.prepared.name}-{self.image_size}"


def run_grid(
    bench: Bench,
    rows: Rows,
    methods: Sequence[str],
    shares: Sequence[float],
    names: Sequence[str],
) -> Iterator[Row]:
    """Measures what is not measured yet, and gives each row as it is kept."""
    for method in methods:
        for share in shares:
            facts = bench.facts(method, share)
            missing = [name for name in names if {**facts, "shape": name} not in rows]
            if missing:
                yield from _measure(bench, rows, facts, missing)


def judge(bench: Bench, rows: Rows, pooled: Any, shape: str) -> Row:
    """The row of a model that `tokenpool squeeze` saved: its own method, schedule and cost."""
    pooling = tp.pooling_of(pooled)
    if pooling is None:
        raise UserError("the model is not pooled: give a folder that tokenpool squeeze made")
    schedule, method = pooling.schedule, pooling.method_text
    share = round(tp.vit_macs(bench.spec, schedule, method).total / bench.dense_macs, 4)
    key = {**bench.facts(method, share), "shape": shape}
    known = [
        row for row in rows.rows if row["schedule"] == str(schedule) and key.items() <= row.items()
    ]
    return (
        known[0]
        if known
        else next(_rows(bench, rows, bench.facts(method, share), {shape: schedule}))
    )


def time_again(bench: Bench, rows: Rows) -> Iterator[Row]:
    """Times every row of this picture size, in one run; each beside the dense model.

    What is timed while the machine does other things tells nothing: rows may be measured then, and
    timed later.
    """
    for row in rows.rows:
        if row["data"] == bench.prepared.name and row["image_size"] == bench.image_size:
            schedule = tp.Schedule.parse(row["schedule"])
            row["dense_milliseconds"] = round(bench.milliseconds(None, row["method"]), 2)
            row["milliseconds"] = round(bench.milliseconds(schedule, row["method"]), 2)
            yield row
    rows.rewrite()


def _measure(bench: Bench, rows: Rows, facts: Row, names: Sequence[str]) -> Iterator[Row]:
    schedules = bench.schedules(facts["method"], facts["share"], names)
    if schedules:
        yield from _rows(bench, rows, facts, schedules)


def _rows(bench: Bench, rows: Rows, facts: Row, schedules: dict[str, tp.Schedule]) -> Iterator[Row]:
    method = facts["method"]
    found = bench.scorer.compare(
        bench.spec.width, [tuple(s) for s in schedules.values()], method, "val"
    )
    dense_ms = bench.milliseconds(None, method)
    for (name, schedule), seen in zip(schedules.items(), found, strict=True):
        report = tp.vit_macs(bench.spec, schedule, method)
        low, high = mean_interval(seen.divergence)
        row = {
            **facts,
            "shape": name,
            "schedule": str(schedule),
            "macs_share": round(report.total / bench.dense_macs, 4),
            "gmacs": round(report.gmacs, 4),
            "gmacs_clustering": round(report.clustering / 1e9, 4),
            "kl": round(float(seen.divergence.mean(dtype=np.float64)), 5),
            "kl_low": round(low, 5),
            "kl_high": round(high, 5),
            "agreement": round(float(seen.agrees.mean()), 4),
            "top1": round(float(seen.right.mean()), 4),
            "dense_top1": round(float(seen.dense_right.mean()), 4),
            "milliseconds": round(bench.milliseconds(schedule, method), 2),
            "dense_milliseconds": round(dense_ms, 2),
            "commit": commit(),
            **hardware("cpu"),
        }
        rows.add(row, seen)
        yield row


def commit() -> str:
    """The tree that was measured; a star where it has changes of its own."""
    found = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip()
