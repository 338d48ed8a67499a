"""`tokenpool bench search real`: who finds the best schedules of a trained ViT, without training.

Quality is the divergence of a schedule's predictions from the dense model's; the price is the
multiply-accumulates of all that is run. Schedules are chosen on pictures of minival. At each of a
number of costs every contender's best within it is then judged on pictures of val, that no
contender saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

import tokenpool as tp
from benchmarks.real import downloads
from benchmarks.real.setting import model_for, prepared_set
from benchmarks.search import contenders
from benchmarks.search.cache import Cache
from benchmarks.search.steps import Point, Step
from pipelines.config import DataConfig, Positive, StrictModel
from pipelines.data.manifest import load_manifest
from pipelines.data.preprocessing import preprocessing_of
from pipelines.search.calibration import damage_table, plan, probe_counts, probes
from pipelines.search.race import BLOCK, Racer
from pipelines.search.scorer import ImageScores, Scorer
from pipelines.search.shared_prefixes import shared_work
from tokenpool.cost import block_macs
from tune_spaces.candidate import Untrained
from tune_spaces.outlook import DenseModel, Prices
from tune_spaces.policy import FrontPolicy, PolicySettings, Score
from tune_spaces.shapes import POWERS, shapes
from tune_spaces.space import Candidate, ScheduleSpace

__all__ = ["CONTENDERS", "FAMILY", "OURS", "RealConfig", "RealWorld", "found_by"]

OURS, FAMILY = "ours", "one-parameter family"
_BATCH = 64
_POWERS = tuple(sorted({*POWERS, -2.0, -1.5, -0.7, -0.25}))

Say = Callable[[str], None]
Contender = Callable[["RealWorld", int], Iterator[Step]]


class RealConfig(StrictModel):
    """What is compared on, and how much everybody may look."""

    name: str = "real"
    data: Path | None = Field(default=None, description="Prepared; None for the clip arts.")
    model: Path | None = Field(
        default=None, description="Saved, dense, with the data's classes; None for the DINOv2 ViT."
    )
    image_size: Positive = 112
    method: str = "leader"
    images: Positive = Field(default=128, description="Of minival, that schedules are chosen on.")
    judged_on: Positive = Field(default=256, description="Of val, that they are judged on.")
    costs: tuple[float, ...] = (0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8)
    schedules: Positive = Field(default=240, description="That ours looks at.")
    generations: Positive = 8
    planned: Positive = 24
    calibrate_counts: int = Field(default=5, ge=2)
    calibrate_images: Positive = 32
    seeds: Positive = 3
    first_seed: int = 100
    least_rate: float = Field(default=0.5, gt=0, lt=1, description="Of a layer, for Optuna.")


@dataclass
class RealWorld:
    """One model, its pictures, and the price of looking.

    Args:
        config: of the bench.
        directory: where answers are kept.
        device: where the model runs.
        say: told what takes long.
    """

    config: RealConfig
    directory: Path
    device: str
    say: Say
    macs: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        cache = downloads.cache_dir()
        data = prepared_set(cache, self.config.data, self.say)
        path = self.config.model or model_for(cache, data, self.config.image_size, self.say)
        model = tp.load(path)
        self.spec = tp.vit_spec(model)
        where = DataConfig(path=data, image_size=self.config.image_size)
        wanted = preprocessing_of(model, load_manifest(data))

        def scorer(images: int) -> Scorer:
            return Scorer(
                {self.spec.width: model},
                where,
                batch_size=_BATCH,
                device=self.device,
                num_threads=None,
                preprocessing=wanted,
                most_images=images,
            )

        self._scorer, self._judge = scorer(self.config.images), scorer(self.config.judged_on)
        self.dense_gmacs = tp.vit_macs(self.spec, self._dense_schedule).gmacs
        self.everything = self._space()
        # Below the least cost that is judged nothing is looked for; nor above the greatest.
        self.space = self._space(
            min_gmacs=0.9 * min(self.config.costs) * self.dense_gmacs,
            max_gmacs=max(self.config.costs) * self.dense_gmacs,
        )
        self.name = f"{data.name}-{self.config.image_size}"
        self._cache = Cache(self.directory / f"real-{path.name}-{self.name}.jsonl")

    def _space(self, **bounds: Any) -> ScheduleSpace:
        costs = {self.config.method: lambda width, schedule: self.cost(schedule)}
        spec = self.spec
        return ScheduleSpace(spec.depth, spec.patches, [spec.width], costs, **bounds)

    @property
    def _dense_schedule(self) -> tp.Schedule:
        return tp.Schedule.dense(self.spec.depth, self.spec.patches)

    def cost(self, schedule: tp.Schedule) -> float:
        """GMACs of an image, clustering counted."""
        return tp.vit_macs(self.spec, schedule, self.config.method).gmacs

    def charge(self, schedules: Sequence[tuple[int, ...]], images: int) -> None:
        """The multiply-accumulates of running them; what they begin with alike is run once."""

        def cost(layer: int, incoming: int, kept: int) -> float:
            return block_macs(self.spec, layer, incoming, kept, self.config.method).total

        work = shared_work(schedules, cost, self.spec.patches)
        self.macs += sum(part for _, part in work) * images

    def look(
        self, schedules: Sequence[tuple[int, ...]], start: int, stop: int
    ) -> list[ImageScores]:
        """Divergences on pictures of minival, in a random order; charged as if always computed."""
        stop = min(stop, self._scorer.num_images())
        self.charge(schedules, stop - start)
        missing = [s for s in dict.fromkeys(schedules) if self._known(s, start, stop) is None]
        for first in range(0, len(missing), _BATCH):
            some = missing[first : first + _BATCH]
            seen = self._scorer.image_scores(
                self.spec.width, some, self.config.method, start, stop, "divergence"
            )
            for schedule, (losses, _) in zip(some, seen, strict=True):
                value = [float(f"{loss:.6g}") for loss in losses]
                self._cache.put(value, self.config.method, list(schedule), start, stop)
        found = []
        for schedule in schedules:
            losses = np.asarray(self._known(schedule, start, stop), dtype=np.float32)
            found.append((losses, np.ones(len(losses), dtype=np.bool_)))
        return found

    def _known(self, schedule: tuple[int, ...], start: int, stop: int) -> list[float] | None:
        known: list[float] | None = self._cache.get(self.config.method, list(schedule), start, stop)
        return known

    def judged(self, schedule: tuple[int, ...]) -> NDArray[np.float64]:
        """Divergences on pictures of val; charged to nobody."""

        def ask() -> list[float]:
            (seen,) = self._judge.compare(self.spec.width, [schedule], self.config.method, "val")
            return [float(f"{value:.6g}") for value in seen.divergence]

        key = (self.config.method, list(schedule), "val", self.config.judged_on)
        return np.asarray(self._cache.once(ask, *key), dtype=np.float64)

    # What contenders of the trained worlds call.

    def evaluate(self, candidate: Candidate, seed: int) -> Step:
        """A schedule on all pictures of minival; its quality is how little it diverges."""
        before = self.macs
        ((losses, _),) = self.look([tuple(candidate.schedule)], 0, self.config.images)
        quality = -float(losses.mean(dtype=np.float64))
        point = Point(candidate.width, tuple(candidate.schedule), candidate.gmacs, quality)
        return Step(self.macs - before, "look", point)


def ours(world: RealWorld, seed: int) -> Iterator[Step]:
    """What `tokenpool search` does without training: calibrate, plan, breed, race."""
    config, space, width = world.config, world.space, world.spec.width
    counts = probe_counts(space, config.calibrate_counts)
    needed = probes(space.depth, counts)
    seen = world.look(needed, 0, config.calibrate_images)
    means = {
        s: float(losses.mean(dtype=np.float64)) for s, (losses, _) in zip(needed, seen, strict=True)
    }
    table = damage_table(space.depth, counts, means)
    planned = plan(space, world.spec, config.method, table, seeds=config.planned, bins=8)
    policy = FrontPolicy(
        space,
        PolicySettings(
            schedules=config.schedules,
            generations=config.generations,
            trials=0,
            rounds=1,
            prices=Prices(first=1, last=1, images=0, measured=config.images),
            seed=seed,
        ),
        [DenseModel(width, world.dense_gmacs, 1.0, 1.0)],
        [candidate for candidate, _ in planned],
    )

    def evaluate(candidates: Sequence[Candidate], start: int, stop: int) -> list[ImageScores]:
        return world.look([tuple(c.schedule) for c in candidates], start, stop)

    racer = Racer(evaluate, config.images)
    screened: list[Untrained] = []
    while isinstance(asked := policy.ask(), Score):
        if asked.is_new:
            policy.asked(asked.candidates)
            continue
        before = world.macs
        rows = racer.score(asked.candidates[:BLOCK], screened)
        screened += rows
        policy.scored(rows)
        yield Step(world.macs - before, "look")
        for row in rows:
            if row.whole:
                found = row.candidate
                yield Step(
                    0.0, "look", Point(found.width, tuple(found.schedule), found.gmacs, -row.loss)
                )


def _simple(names: Sequence[str] | None, powers: Sequence[float]) -> Contender:
    """Shapes of one parameter at each of the costs, found by bisection; None for all of them."""

    def contender(world: RealWorld, seed: int) -> Iterator[Step]:
        for share in world.config.costs:
            target = share * world.dense_gmacs
            found = shapes(world.spec.depth, world.spec.patches, world.cost, target, powers)
            for name, schedule in found.items():
                if names is None or name in names:
                    cost = world.cost(schedule)
                    yield world.evaluate(
                        Candidate(world.spec.width, schedule, cost, world.config.method), seed
                    )

    return contender


def _as_trained(
    contender: Callable[[Any, int], Iterator[Step]], *, bounded: bool = True
) -> Contender:
    """A contender of the trained worlds, told what these are configured with.

    Args:
        contender: to be told.
        bounded: whether it keeps to the costs that are judged; Optuna's samplers cannot.
    """

    def wrapped(world: RealWorld, seed: int) -> Iterator[Step]:
        facts = SimpleNamespace(
            space=world.space if bounded else world.everything,
            config=SimpleNamespace(least_rate=world.config.least_rate, min_tokens=1),
            evaluate=world.evaluate,
        )
        return contender(facts, seed)

    return wrapped


CONTENDERS: dict[str, Contender] = {
    OURS: ours,
    "constant rate": _simple(["constant rate"], [0.0]),
    "constant number": _simple(["constant number"], []),
    FAMILY: _simple(None, _POWERS),
    "random schedules": _as_trained(contenders.random_schedules),
    "Optuna NSGA-II": _as_trained(contenders.nsga2, bounded=False),
}
"""The first goes first: what it spends is the others' limit."""


def found_by(world: RealWorld, name: str, seed: int, budget: float) -> tuple[list[Point], float]:
    """What a contender measured, and the multiply-accumulates it took."""
    world.macs, points = 0.0, []
    for step in CONTENDERS[name](world, seed):
        if world.macs > budget:
            break
        if step.point is not None:
            points.append(step.point)
    return points, world.macs
