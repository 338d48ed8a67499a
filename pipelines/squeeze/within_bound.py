"""Finds the schedule of least damage within a bound: calibrate, plan, look, look closer.

Schedules are judged by how far their predictions are from the dense model's (KL divergence): that
needs no labels, and is several times less noisy on few images than their own loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tokenpool as tp
from pipelines.console import Screen, ShareBar
from pipelines.errors import UserError
from pipelines.search.calibration import damage_table, plan, probe_counts, probes
from pipelines.search.scorer import Scorer
from pipelines.squeeze.answers import Answers, Question, Seen, fingerprint
from pipelines.squeeze.forecast import Work, in_words
from tune_spaces.candidate import Untrained
from tune_spaces.evolution import scaled
from tune_spaces.image_halving import ImageHalving, See, looks_of
from tune_spaces.outlook import DenseModel, Prices
from tune_spaces.planner import DamageTable
from tune_spaces.policy import FrontPolicy, PolicySettings, Score
from tune_spaces.space import Candidate, ScheduleSpace

_PROBE_COUNTS, _PROBE_IMAGES = 5, 32
# Of the plan, those that come near the bound, the best of them first.
_PLANNED, _NEAR, _SEEDS, _BINS = 8, 0.9, 256, 32
# Schedules are bred in so many parts, of no less than so many each.
_GENERATIONS, _LEAST_GENERATION = 9, 4
# Of the schedules, how many are the best one's shape at less cost, and which costs these are.
_CHEAPER, _CHEAPER_FROM = (0.95, 0.9, 0.8, 0.7), 40
# Schedules a stop may lose the work of.
_KEPT_TOGETHER = 32
# Of schedules that cost nearly the same, the best is worth showing.
_SAME_COST = 0.99


@dataclass(frozen=True)
class SqueezeOptions:
    """How long to look, and how.

    Attributes:
        max_gmacs: bound on the cost of one image, in 10⁹ multiply-accumulates.
        method: of `tp.METHODS`, with its options as text.
        schedules: how many are looked at.
        images: on which, at most.
        batch_size: images per forward pass.
        device: where the model runs.
        seed: of what is drawn.
    """

    max_gmacs: float
    method: str = "leader"
    schedules: int = 200
    images: int = 512
    batch_size: int = 64
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True)
class SqueezedSchedule:
    """A schedule and what it does.

    Attributes:
        schedule: patch tokens kept after each block.
        gmacs: of an image, clustering counted.
        divergence: mean KL of the predictions from the dense model's (nats).
        agreement: share of the images whose class is the dense model's.
        top1: share whose class is the true one; None where there are no labels.
    """

    schedule: tuple[int, ...]
    gmacs: float
    divergence: float
    agreement: float
    top1: float | None


@dataclass(frozen=True)
class Squeezed:
    """What was found.

    Attributes:
        dense: the model as it was.
        front: the best, and those that cost less and do more damage, by ascending cost.
        best: of least divergence.
        images: how many it was seen on.
        notes: what was assumed or changed, each for one line.
    """

    dense: SqueezedSchedule
    front: list[SqueezedSchedule]
    best: SqueezedSchedule
    images: int
    notes: tuple[str, ...] = ()


def share_of_dense(model: Any, rate: float) -> float:
    """The bound in GMACs that a share of the dense cost is.

    Raises:
        UserError: the rate is no fraction.
    """
    if not 0 < rate < 1:
        raise UserError(f"rate {rate:g} is no share of the dense cost: give one between 0 and 1")
    spec = tp.vit_spec(model)
    return rate * tp.vit_macs(spec, tp.Schedule.dense(spec.depth, spec.patches)).gmacs


def find_schedule(
    model: Any,
    scorer: Scorer,
    options: SqueezeOptions,
    screen: Screen,
    *,
    labelled: bool,
    kept_in: Path | None = None,
    notes: tuple[str, ...] = (),
) -> Squeezed:
    """Looks for the best schedule within the bound; the model ends up pooled by it.

    Args:
        model: dense, in evaluation mode.
        scorer: holds it, and the images.
        options: bound, method and effort.
        screen: told how long it will take, and how far it is.
        labelled: whether the images' labels mean something.
        kept_in: a file that what was measured is kept in until the end, so that a run that is
            stopped can be repeated and goes on.
        notes: handed on.

    Raises:
        UserError: nothing is within the bound, predictions are not finite, or the file is of
            another squeeze.
    """
    spec = tp.vit_spec(model)
    space = make_space(spec, options)
    images = scorer.num_images()
    chosen = asdict(options) | {"device": ""}
    key = fingerprint(model, scorer.minival(), chosen)
    with closing(Answers(kept_in, key, screen.say)) as answers:
        judge = _Judge(scorer, spec, options, answers)
        dense, front = _looked_for(
            judge, space, screen, kept_in if len(answers) else None, labelled
        )
    tp.pool(model, front[-1].schedule, options.method)
    return Squeezed(dense, front, front[-1], images, notes)


def _looked_for(
    judge: _Judge, space: ScheduleSpace, screen: Screen, goes_on: Path | None, labelled: bool
) -> tuple[SqueezedSchedule, list[SqueezedSchedule]]:
    """The dense model's row and the front's."""
    counts = probe_counts(space, _PROBE_COUNTS)
    needed = probes(space.depth, counts)
    probed = min(_PROBE_IMAGES, judge.images)

    def rehearsed(see: See) -> None:
        look_within(space, judge.options, (), judge.images, see)

    total = judge.work.of_search(rehearsed) + sum(judge.work.of(needed)) * probed
    if goes_on is None:
        seconds = total * judge.work.seconds_per_mac(judge.time, judge.images)
        screen.say(
            f"{len(needed)} probes and {judge.options.schedules} schedules on {judge.images} "
            f"images: about {in_words(seconds)}"
        )
    else:
        screen.say(f"goes on from {goes_on}")
    with screen.share_of("squeezing", total) as bar:
        judge.bar = bar
        bar.advance(note="what pooling costs at each layer")
        seen = judge.see(needed, 0, probed)
        table = damage_table(
            space.depth, counts, {s: one.divergence for s, one in zip(needed, seen, strict=True)}
        )
        planned = _near_bound(judge, space, table)
        rows = look_within(space, judge.options, planned, judge.images, judge.damages)
        judge.bar = None
    return judge.rows(rows, labelled)


def look_within(
    space: ScheduleSpace,
    options: SqueezeOptions,
    planned: Sequence[Candidate],
    images: int,
    see: See,
) -> list[Untrained]:
    """Looks at schedules that cost what the bound allows, as the policy asks for them.

    Args:
        space: of one width and method, with the bound as its `max_gmacs`.
        options: how many, and the seed.
        planned: candidates that are expected to be good, the best first.
        images: how many there are to judge on.
        see: judges schedules on some of them.

    Returns:
        Those that were seen on all images, the least damage first; the last that were looked at
        are the best one's shape at less cost.
    """
    dense = space.cost(space.widths[0], space.dense())
    cheaper = _CHEAPER if options.schedules >= _CHEAPER_FROM else ()
    schedules = options.schedules - len(cheaper)
    bound = min(space.max_gmacs, dense)
    policy = FrontPolicy(
        space,
        PolicySettings(
            schedules=schedules,
            generations=max(1, min(_GENERATIONS, schedules // _LEAST_GENERATION)),
            trials=0,
            rounds=1,
            prices=Prices(first=1, last=1, images=0, measured=images),
            targets=(bound,),
            seed=options.seed,
        ),
        [DenseModel(space.widths[0], dense, 1.0, 1.0)],
        planned,
    )
    halving = ImageHalving(images, see)
    rows: list[Untrained] = []
    while isinstance(asked := policy.ask(), Score):
        if asked.is_new:
            policy.asked(asked.candidates)
            continue
        judged = halving.judge(asked.candidates)
        policy.scored(judged)
        rows += [row for row in judged if row.whole]
    best = min(rows, key=lambda row: row.loss).candidate
    shapes = [scaled(space, best, share * bound) for share in cheaper]
    fresh = {candidate.key: candidate for candidate in shapes if candidate is not None}
    seen = {row.candidate.key for row in rows}
    more = [candidate for key, candidate in fresh.items() if key not in seen]
    rows += halving.judge(more, all_whole=True) if more else []
    return sorted(rows, key=lambda row: (row.loss, tuple(row.candidate.schedule)))


def _near_bound(judge: _Judge, space: ScheduleSpace, table: DamageTable) -> list[Candidate]:
    """Of the plan, the best that spend nearly all they may."""
    planned = plan(space, judge.spec, judge.options.method, table, seeds=_SEEDS, bins=_BINS)
    near = [entry for entry in planned if entry[0].gmacs >= _NEAR * judge.options.max_gmacs]
    return [candidate for candidate, _ in sorted(near, key=lambda entry: entry[1])[:_PLANNED]]


def make_space(spec: tp.VitSpec, options: SqueezeOptions) -> ScheduleSpace:
    """All schedules within the bound.

    Raises:
        UserError: there is none.
    """
    try:
        return ScheduleSpace(
            spec.depth,
            spec.patches,
            [spec.width],
            lambda width, schedule: tp.vit_macs(spec, schedule, options.method).gmacs,
            max_gmacs=options.max_gmacs,
        )
    except ValueError as error:
        raise UserError(f"{error}: raise the bound") from None


class _Judge:
    """Scores schedules batch by batch, keeps the answers and tells how far it is."""

    def __init__(
        self, scorer: Scorer, spec: tp.VitSpec, options: SqueezeOptions, answers: Answers
    ) -> None:
        self._scorer, self._answers = scorer, answers
        self.spec, self.options, self.images = spec, options, scorer.num_images()
        self.work = Work(spec, options.method)
        self.bar: ShareBar | None = None
        self._least = float("inf")

    def damages(self, candidates: Sequence[Candidate], start: int, stop: int) -> list[float]:
        """Mean divergences on images start to stop; the least so far is told."""
        seen = self.see([tuple(candidate.schedule) for candidate in candidates], start, stop)
        found = [one.divergence for one in seen]
        if stop == self.images and found:
            self._least = min(self._least, *found)
            if self.bar is not None:
                self.bar.advance(note=f"divergence {self._least:.4f}")
        return found

    def time(self, schedule: tuple[int, ...], images: int) -> None:
        """Scores one for nothing."""
        self._scorer.beside_dense(self.spec.width, [schedule], self.options.method, 0, images)

    def see(self, schedules: Sequence[tuple[int, ...]], start: int, stop: int) -> list[Seen]:
        """What each makes of images start to stop."""
        size = self.options.batch_size
        parts = [(a, min(a + size, stop)) for a in range(start, stop, size)]
        for begin, end in parts:
            asked: list[Question] = [(s, begin, end) for s in schedules]
            missing = [q for q in asked if self._answers.get(q) is None]
            known = len(asked) - len(missing)
            if known and self.bar is not None:
                done = sum(self.work.of([s for s, *_ in asked if (s, begin, end) not in missing]))
                self.bar.advance(done * (end - begin))
            # Those that begin alike stay together.
            missing.sort(reverse=True)
            for first in range(0, len(missing), _KEPT_TOGETHER):
                some = missing[first : first + _KEPT_TOGETHER]
                self._answers.add(self._measured(some, begin, end))
        weights = np.array([end - begin for begin, end in parts]) / (stop - start)
        found = []
        for schedule in schedules:
            rows = [self._answers.get((schedule, begin, end)) for begin, end in parts]
            found.append(_mean(rows, weights))
        return found

    def _measured(
        self, questions: Sequence[Question], start: int, stop: int
    ) -> dict[Question, Seen]:
        schedules = [schedule for schedule, *_ in questions]
        steps = iter(self.work.of(schedules))

        def told(images: int) -> None:
            if self.bar is not None:
                self.bar.advance(next(steps) * images)

        found = self._scorer.beside_dense(
            self.spec.width, schedules, self.options.method, start, stop, told
        )
        seen = {}
        for question, one in zip(questions, found, strict=True):
            if not np.isfinite(one.divergence).all():
                raise UserError(
                    f"the model's predictions are not finite with {','.join(map(str, question[0]))}"
                    " tokens kept: look at its weights and at the images",
                    exit_code=1,
                )
            seen[question] = Seen(
                float(one.divergence.mean(dtype=np.float64)),
                float(one.agrees.mean()),
                float(one.right.mean()),
            )
        return seen

    def rows(
        self, complete: Sequence[Untrained], labelled: bool
    ) -> tuple[SqueezedSchedule, list[SqueezedSchedule]]:
        """The dense model, and the front of those that were seen on all images, the best first."""
        front: list[Candidate] = []
        for entry in complete:
            if not front or entry.candidate.gmacs < _SAME_COST * front[-1].gmacs:
                front.append(entry.candidate)
        schedules = [tuple(candidate.schedule) for candidate in front[::-1]]
        dense = tuple(tp.Schedule.dense(self.spec.depth, self.spec.patches))
        predicted, labels = self._scorer.predictions(self.spec.width)
        top1 = float((predicted == labels).mean()) if labelled else None
        return SqueezedSchedule(dense, self.work.dense / 1e9, 0.0, 1.0, top1), [
            SqueezedSchedule(
                schedule,
                candidate.gmacs,
                seen.divergence,
                seen.agreement,
                seen.top1 if labelled else None,
            )
            for schedule, candidate, seen in zip(
                schedules, front[::-1], self._complete(schedules), strict=True
            )
        ]

    def _complete(self, schedules: Sequence[tuple[int, ...]]) -> list[Seen]:
        """Put together from the parts they were seen in; nothing is run again."""
        edges = [0, *looks_of(self.images)]
        parts = [self.see(schedules, start, stop) for start, stop in pairwise(edges)]
        weights = np.diff(edges) / edges[-1]
        return [_mean(rows, weights) for rows in zip(*parts, strict=True)]


def _mean(rows: Sequence[Seen | None], weights: NDArray[np.float64]) -> Seen:
    return Seen(*(weights @ np.array(rows, dtype=np.float64)).tolist())
