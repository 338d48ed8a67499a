"""Our search's trainings in the bench: which step is taken next, and what is expected of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipelines.search.bench.world import Finetuning, Step, World
from pipelines.search.stages.finalists import choose_finalists
from pipelines.search.stages.screen import as_scored
from pipelines.search.state import BaseState, ScreenedSchedule, SearchState
from tune_spaces.evolution import Scored
from tune_spaces.expectation import TrainedQuality
from tune_spaces.halving import Entry, HalvingRule
from tune_spaces.space import Candidate
from tune_spaces.volume import added_volume

Key = tuple[int, tuple[int, ...]]
# How much of what a schedule lacks untrained is guessed to be left after training.
_LEFT = 0.5
# Standard deviations above the mean: what is known least may be best.
_OPTIMISM = 0.5
# Share of what a model lacks at the rung that it gains by the end, before any got there, and how
# much that counts: as one whose top-1 lacks a tenth.
_RECOVERED = (0.3, 0.01)


def untrained_top1(screened: list[ScreenedSchedule]) -> dict[Key, float]:
    """Top-1 of each schedule without training, the noise of few images taken out.

    Cross-entropy orders schedules more reliably than top-1. So within a width the best top-1 is
    given to the schedule of the least cross-entropy, the next to the next, and so on.
    """
    found: dict[Key, float] = {}
    for width in {row.width for row in screened}:
        own = [row for row in screened if row.width == width]
        order = sorted(own, key=lambda row: row.loss)
        values = sorted((row.top1 for row in own), reverse=True)
        found |= {(width, r.schedule): value for r, value in zip(order, values, strict=True)}
    return found


class Finals:
    """Fine-tunings in steps: to the first rung, and from there to the end.

    Next is the step that should add most hypervolume for its price. So all that promises something
    is seen at the rung early, and what the front is made of is trained on.

    What a schedule comes to at the rung is guessed from its top-1 without training: half of what it
    lacks against its dense model is left. What was trained by then corrects the guess
    (`TrainedQuality`).
    """

    def __init__(self, world: World, seed: int) -> None:
        config = world.config
        self._world, self._seed = world, seed
        bases = [world.base_point(width) for width in world.space.widths]
        self._dense = {base.width: base.top1 for base in bases}
        self._bases = [
            BaseState(base.width, world.heads[base.width], base.gmacs, top1_minival=base.top1)
            for base in bases
        ]
        self._known = [(base.gmacs, base.top1) for base in bases]
        self._reference = (world.reference_gmacs, config.top1_floor)
        self._trained: dict[Key, _Trained] = {}
        self._rule = HalvingRule(
            keep=1 / config.halving.reduction_factor, noise=(config.ours.noise_margin,)
        )
        self._first, self._last = config.halving.grace_epochs, config.finetune.epochs
        self._rung: dict[str, Entry] = {}

    def run(self, screened: list[ScreenedSchedule], trials: int, margin: float) -> Iterator[Step]:
        """Trains until `trials` were begun, or no step is expected to add to the front.

        Args:
            screened: what may be trained.
            trials: of all rounds so far.
            margin: new ones expected to be less above the front wait for more to be screened.
        """
        state = SearchState("bench", screened=screened, num_classes=self._world.num_classes)
        state.bases = self._bases
        every = len(screened) * len(self._bases)
        pool = [entry.candidate for entry in choose_finalists(state, every)]
        guesses = self._guesses(screened)
        while len(self._trained) < trials:
            new = [c for c in pool if _key(c) not in self._trained]
            expected = self._expected(new, [guesses[_key(c)] for c in new], _OPTIMISM)
            starts = self._worth(new, expected, margin, self._price(self._first))
            begun = [row for row in self._trained.values() if row.kept and row.last is None]
            ends = self._worth(
                [row.candidate for row in begun],
                [row.first + self._recovered * self._lack(row) for row in begun],
                0.0,
                self._price(self._last - self._first),
            )
            if max([*starts, *ends], default=0.0) <= 0:
                return
            if max(ends, default=0.0) >= max(starts, default=0.0):
                yield from self._finish(begun[int(np.argmax(ends))])
            else:
                candidate = new[int(np.argmax(starts))]
                yield from self._begin(candidate, guesses[_key(candidate)])

    def as_expected(self, screened: list[ScreenedSchedule]) -> list[Scored]:
        """What was screened, with the top-1 expected of it at the rung."""
        guesses = self._guesses(screened)
        scored = as_scored(screened)
        expected = self._expected(
            [entry.candidate for entry in scored], [guesses[_key(e.candidate)] for e in scored]
        )
        return [Scored(e.candidate, value) for e, value in zip(scored, expected, strict=True)]

    def _worth(
        self, candidates: list[Candidate], expected: list[float], margin: float, price: float
    ) -> list[float]:
        """Hypervolume that each is expected to add, for its price."""
        costs = [candidate.gmacs for candidate in candidates]
        added = added_volume(
            list(zip(costs, expected, strict=True)),
            [(gmacs, quality + margin) for gmacs, quality in self._known],
            self._reference,
        )
        # An image takes time for more than its MACs.
        prices = [price * (cost + self._reference[0] / 6) for cost in costs]
        return [float(a / p) for a, p in zip(added, prices, strict=True)]

    def _price(self, epochs: int) -> float:
        """Forward passes of so many epochs and of measuring; a backward pass counts as two."""
        images = self._world.config.finetune_images or len(self._world.split("train")[1])
        return 3.0 * epochs * images + len(self._world.split("minival")[1])

    def _expected(
        self, candidates: list[Candidate], guesses: list[float], optimism: float = 0.0
    ) -> list[float]:
        rows = list(self._trained.values())
        quality = TrainedQuality(
            self._world.space.patches,
            [row.candidate for row in rows],
            [row.guess for row in rows],
            [row.first for row in rows],
        )
        return [float(value) for value in quality.predict(candidates, guesses, optimism)]

    @property
    def _recovered(self) -> float:
        """Share of what a model lacks at the rung that it gains by the end: least squares."""
        weight, product = _RECOVERED[1], _RECOVERED[0] * _RECOVERED[1]
        for row in self._trained.values():
            if row.last is not None:
                lack = self._lack(row)
                weight, product = weight + lack**2, product + lack * (row.last - row.first)
        return min(max(product / weight, 0.0), 1.0)

    def _lack(self, row: _Trained) -> float:
        return max(0.0, self._dense[row.candidate.width] - row.first)

    def _guesses(self, screened: list[ScreenedSchedule]) -> dict[Key, float]:
        """Half of what a schedule lacks untrained against the dense model, on the same images."""
        found, dense = {}, tuple(self._world.space.dense())
        for key, top1 in untrained_top1(screened).items():
            known, _, _ = self._world.score(key[0], dense)  # asked and paid for already
            found[key] = self._dense[key[0]] - _LEFT * max(0.0, known - top1)
        return found

    def _begin(self, candidate: Candidate, guess: float) -> Iterator[Step]:
        """Trains to the rung; the rule says whether it may ever go on."""
        run = self._world.finetune(candidate, self._seed)
        step = run.run_to(self._first)
        yield step
        top1, trial_id = self._heard(step), f"t{len(self._trained):03d}"
        entry = Entry((candidate.gmacs,), (top1,))
        self._rung[trial_id] = entry
        kept = self._rule.judge(trial_id, self._rung).kept
        self._rung[trial_id] = Entry(entry.costs, entry.qualities, kept)
        self._trained[_key(candidate)] = _Trained(candidate, guess, run, top1, kept)

    def _finish(self, row: _Trained) -> Iterator[Step]:
        step = row.run.run_to(self._last)
        yield step
        row.last = self._heard(step)

    def _heard(self, step: Step) -> float:
        assert step.point is not None
        self._known.append((step.point.gmacs, step.point.top1))
        return step.point.top1


@dataclass
class _Trained:
    """A candidate in training, with its top-1 at the rung and at the end."""

    candidate: Candidate
    guess: float
    run: Finetuning
    first: float
    kept: bool
    last: float | None = None


def _key(candidate: Candidate) -> Key:
    return candidate.width, tuple(candidate.schedule)
