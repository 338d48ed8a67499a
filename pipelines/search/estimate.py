"""What a search would cost, stage by stage: low and high, from a probe's rates. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from pipelines.config import SearchConfig, WorkersConfig
from pipelines.data.manifest import Manifest
from pipelines.search.calibration import probe_counts, probes
from pipelines.search.probe import Probe, Range, Rates
from pipelines.search.search_space import count_parameters, make_space
from tune_spaces.halving import rung_of

# Weights and AdamW's two moments in fp32 in DeepSpeed's file, the scored model beside it.
_BYTES_PER_PARAMETER = 16
# Seconds from the start of a worker to its first step: imports, process group, loader.
_START: Range = (3.0, 25.0)
# Seconds in which a scorer loads models and images.
_SCORER_START: Range = (3.0, 25.0)
# Seconds one batch size of one model is timed for.
_TIMED: Range = (0.5, 2.0)
# Racing drops what is surely dominated after few images.
_RACING_SAVES = 0.5
# Steps of a whole training differ from a probe's: all-reduce, checkpoints, neighbours.
_SLOWER = 1.3


@dataclass(frozen=True)
class StageCost:
    """One stage.

    Attributes:
        name: of the stage.
        what: it does, in a few words.
        jobs: trainings, or passes over a model, as low and high.
        device_seconds: as low and high; None without a probe.
        seconds: on the clock, with what the cluster holds; None without a probe or where it does
            not fit.
    """

    name: str
    what: str
    jobs: tuple[int, int]
    device_seconds: Range | None
    seconds: Range | None


@dataclass(frozen=True)
class Estimate:
    """A whole search.

    Attributes:
        stages: in their order; what is switched off is left out.
        trials: final trainings with what is trained beside them, as low and high.
        checkpoint_bytes: of all jobs together, as low and high.
        beton_bytes: of the prepared data.
        notes: what the figures leave out.
    """

    name: str
    stages: list[StageCost]
    trials: tuple[int, int]
    checkpoint_bytes: tuple[int, int]
    beton_bytes: int
    notes: list[str] = field(default_factory=list)

    @property
    def device_seconds(self) -> Range | None:
        """Of all stages."""
        return _total([stage.device_seconds for stage in self.stages])

    @property
    def seconds(self) -> Range | None:
        """On the clock, of all stages."""
        return _total([stage.seconds for stage in self.stages])


# How many processes of so many CPUs and GPUs, in groups, run side by side; 0 if not one group fits.
Fits = Callable[[int, float, float], int]


def estimate(config: SearchConfig, manifest: Manifest, found: Probe | None, fits: Fits) -> Estimate:
    """Costs a search.

    Low is the fastest run of the probe, trials stopped as early as halving ever stops them, and
    screening that races; high is a slow run, every trial trained to its end, no racing, and what
    starting takes on a busy machine.

    Args:
        config: of the search.
        manifest: of its data.
        found: the probe's rates; None leaves the times out.
        fits: asks the cluster.

    Raises:
        UserError: no schedule is within the bounds.
    """
    parts = _Parts(config, manifest, found, fits)
    stages = [parts.base(), parts.calibrate(), *parts.screens(), parts.finals(), parts.publish()]
    trained = parts.trained_bases + parts.supernets
    parameters = {
        w.width: count_parameters(config, w, manifest.num_classes) for w in config.space.widths
    }
    checkpoint = _BYTES_PER_PARAMETER * max(parameters.values())
    smallest = _BYTES_PER_PARAMETER * min(parameters.values())
    keep_base, keep = config.base.train.keep_checkpoints, config.finals.train.keep_checkpoints
    low, high = parts.trials
    notes = []
    if config.finals.train.distill is not None or config.base.train.distill is not None:
        notes.append("the teacher's forward passes are not in the figures")
    if config.finals.train.compile or config.base.train.compile:
        notes.append("timed without torch.compile, which makes steps faster and starts slower")
    return Estimate(
        name=config.name,
        stages=[stage for stage in stages if stage is not None],
        trials=parts.trials,
        checkpoint_bytes=(
            trained * min(keep_base, config.base.train.epochs) * smallest
            + low * min(keep, config.finals.grace_epochs) * smallest,
            (trained * (keep_base + 1) + high * (keep + 1)) * checkpoint,
        ),
        beton_bytes=sum(split.size_bytes for split in manifest.splits.values()),
        notes=notes,
    )


class _Parts:
    def __init__(
        self, config: SearchConfig, manifest: Manifest, found: Probe | None, fits: Fits
    ) -> None:
        self.config, self.found, self.fits = config, found, fits
        self.images = {name: split.samples for name, split in manifest.splits.items()}
        self.space = make_space(config, manifest.num_classes)
        self.widths = len(config.space.widths)
        self.trained_bases = sum(w.checkpoint is None for w in config.space.widths)
        self.supernets = self.widths if config.supernet.enabled else 0

    @property
    def trials(self) -> tuple[int, int]:
        """Finals, constant keep-rates, further seeds of these and of what may be on the front."""
        finals = self.config.finals
        constant = len(finals.constant_rates) * self.widths * finals.seeds
        more = finals.seeds - 1
        low, high = finals.trials + constant + more, finals.trials * (1 + more) + constant
        limit = self.config.budget.trials
        return (low, high) if limit is None else (min(low, limit), min(high, limit))

    def base(self) -> StageCost:
        config, workers = self.config, self.config.base.workers
        trained = [w for w in config.space.widths if w.checkpoint is None]
        epochs = {w.width: config.base_epochs(w) for w in trained}
        cost: Range | None = (0.0, 0.0)
        for width, number in epochs.items():
            one = self._sum(partial(self._dense_job, number), [width])
            cost = None if one is None or cost is None else (cost[0] + one[0], cost[1] + one[1])
        shown = " and ".join(str(number) for number in sorted(set(epochs.values())))
        return self._training(
            "base",
            f"{len(trained)} dense models, {shown or config.base.train.epochs} epochs",
            (len(trained), len(trained)),
            workers,
            config.base.max_concurrent,
            cost,
        )

    def _dense_job(self, epochs: int, rate: Rates) -> Range:
        return self._job(rate.train_dense, rate.score_dense, epochs)

    def calibrate(self) -> StageCost | None:
        stage = self.config.calibrate
        if not stage.enabled:
            return None
        space = self.space
        passes = len(probes(space.depth, probe_counts(space, stage.counts)))
        arms = [arm[0] for arm in space.cost_ranges]
        images = min(stage.images, self.images["minival"])
        return self._scoring(
            "calibrate",
            f"{passes} probes of {len(arms)} models on {images} images",
            (passes * len(arms), passes * len(arms)),
            self._sum(lambda rate: self._scored(rate, passes * images), arms),
            race=False,
        )

    def screens(self) -> list[StageCost]:
        config = self.config
        found = [self._screen("screen", config.screen.schedules)]
        if self.supernets:
            train = config.supernet.train or config.base.train
            per_step = 2 + config.supernet.random

            def job(rate: Rates) -> Range:
                low, high = _between(rate.train_dense, rate.train_pooled)
                step = per_step * low, per_step * high
                return self._job(step, rate.score_dense, train.epochs)

            supernet = self._training(
                "supernet",
                f"{self.supernets} supernets, {train.epochs} epochs",
                (self.supernets, self.supernets),
                config.supernet.workers,
                config.supernet.max_concurrent,
                self._sum(job, [w.width for w in config.space.widths]),
            )
            found += [supernet, self._screen("rescreen", config.supernet.schedules)]
        return found

    def finals(self) -> StageCost:
        finals = self.config.finals
        epochs = finals.train.epochs
        low, high = self.trials
        rung = rung_of(finals.grace_epochs, epochs)
        # At least every final comes to the rung, and one of them, as all others, to its end.
        begun = min(low, finals.trials)
        least = float(begun * rung + epochs - rung + (low - begun) * epochs)

        def job(rate: Rates) -> Range:
            trained = _between(rate.train_dense, rate.train_pooled)
            scored = _between(rate.score_dense, rate.score_pooled)
            one = self._job(trained, scored, 1)
            start = (self._start(_START[0], finals.workers), self._start(_START[1], finals.workers))
            return least * one[0] + low * start[0], high * (epochs * one[1] + start[1])

        widths = [w.width for w in self.config.space.widths]
        every = self._each(job, widths)
        cost = None
        if every is not None:
            # Trials are shared among the widths: as cheap, or as dear, as the mean of them.
            cost = (
                sum(low for low, _ in every) / len(every),
                sum(high for _, high in every) / len(every),
            )
        return self._training(
            "finals",
            f"{low} to {high} trials of {rung} to {epochs} epochs"
            if low < high
            else f"{low} trials of {rung} to {epochs} epochs",
            self.trials,
            finals.workers,
            finals.max_concurrent,
            cost,
            starts=False,
        )

    def publish(self) -> StageCost:
        config = self.config
        low, high = self.widths + 1, self.widths + self.trials[1]
        batches = len(config.publish.latency_batches)
        cost = self._sum(lambda rate: self._scored(rate, self.images["val"]), [
            w.width for w in config.space.widths])  # fmt: skip
        if cost is not None:
            mean = cost[0] / self.widths, cost[1] / self.widths
            cost = (
                low * (mean[0] + batches * _TIMED[0]),
                high * (mean[1] + batches * _TIMED[1]),
            )
        return self._scoring(
            "publish",
            f"val top-1 and latency of {low} to {high} models",
            (low, high),
            cost,
            race=False,
            actors=1,
        )

    # ---------------------------------------------------------------- helpers

    def _job(self, train: Range, score: Range, epochs: int) -> Range:
        """Device-seconds of a training without its start; decoding hides behind steps, or not."""
        images, minival = self.images["train"], self.images["minival"]
        decode = (self.found.decode if self.found is not None else None) or 0.0
        return (
            epochs * (images * max(train[0], decode) + minival * score[0]),
            epochs * (images * (train[1] * _SLOWER + decode) + minival * score[1]),
        )

    def _scored(self, rate: Rates, images: float) -> Range:
        score = _between(rate.score_dense, rate.score_pooled)
        return images * score[0], images * score[1] * _SLOWER

    def _each(self, cost: Callable[[Rates], Range], widths: list[int]) -> list[Range] | None:
        if self.found is None:
            return None
        rates = self.found.rates
        # A width without any schedule within the bounds is trained as a base all the same.
        widest = rates[max(rates)]
        return [cost(rates.get(width, widest)) for width in widths]

    def _sum(self, cost: Callable[[Rates], Range], widths: list[int]) -> Range | None:
        every = self._each(cost, widths)
        return None if every is None else (sum(c[0] for c in every), sum(c[1] for c in every))

    def _start(self, seconds: float, workers: WorkersConfig) -> float:
        return seconds * workers.num_workers

    def _screen(self, name: str, schedules: int) -> StageCost:
        minival = self.images["minival"]
        every = self._each(lambda rate: self._scored(rate, minival * schedules), [
            width for width, _ in self.space.cost_ranges])  # fmt: skip
        cost = None
        if every is not None:  # schedules are shared among the widths and methods
            cost = (
                sum(low for low, _ in every) / len(every),
                sum(high for _, high in every) / len(every),
            )
        return self._scoring(
            name,
            f"{schedules} schedules on {minival} images",
            (schedules, schedules),
            cost,
            race=self.config.screen.racing,
        )

    def _training(
        self,
        name: str,
        what: str,
        jobs: tuple[int, int],
        workers: WorkersConfig,
        wanted: int | None,
        cost: Range | None,
        *,
        starts: bool = True,
    ) -> StageCost:
        if cost is not None and starts:
            cost = (
                cost[0] + jobs[0] * self._start(_START[0], workers),
                cost[1] + jobs[1] * self._start(_START[1], workers),
            )
        fit = self.fits(workers.num_workers, workers.cpus_per_worker, workers.gpus_per_worker)
        side_by_side = min(fit, wanted or fit, max(jobs[1], 1))
        return StageCost(name, what, jobs, cost, _clock(cost, side_by_side * workers.num_workers))

    def _scoring(
        self,
        name: str,
        what: str,
        jobs: tuple[int, int],
        cost: Range | None,
        *,
        race: bool,
        actors: int | None = None,
    ) -> StageCost:
        stage = self.config.screen
        share = stage.gpus_per_actor or 1.0
        fit = self.fits(1, stage.cpus_per_actor, stage.gpus_per_actor)
        count = min(fit, stage.actors if actors is None else actors)
        if cost is not None:
            least = cost[0] * (1 - _RACING_SAVES) if race else cost[0]
            # Actors that share a GPU take turns on it.
            starts = max(count, 1) * share
            cost = least + starts * _SCORER_START[0], cost[1] + starts * _SCORER_START[1]
        return StageCost(name, what, jobs, cost, _clock(cost, count * share))


def _between(first: Range, second: Range) -> Range:
    return min(first[0], second[0]), max(first[1], second[1])


def _clock(cost: Range | None, devices: float) -> Range | None:
    return None if cost is None or not devices else (cost[0] / devices, cost[1] / devices)


def _total(ranges: list[Range | None]) -> Range | None:
    known = [r for r in ranges if r is not None]
    if len(known) < len(ranges):
        return None
    return sum(low for low, _ in known), sum(high for _, high in known)
