"""Who has given no sign of life for too long, by what watched processes answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from pipelines.train.life_signs import CHECKPOINT, OVER, Sign

LEAST_SECONDS, TIMES_USUAL = 180.0, 10.0
# Longer before the first step, what is done for the first time, and while a checkpoint is written
# to a slow disk.
_GRACE = 10.0


@dataclass(frozen=True)
class Stall:
    """A process that has stalled.

    Attributes:
        rank: which.
        seconds: without a sign of life.
        answers: whether it answers; one that is stopped or gone does not.
        sign: its last.
    """

    rank: int
    seconds: float
    answers: bool
    sign: Sign

    @property
    def text(self) -> str:
        """What is to be said of it: how long it was silent, and where it stood."""
        where = "no step done yet" if self.sign.step is None else f"last step {self.sign.step}"
        how = self.sign.doing if self.answers else "its process does not answer"
        return f"no sign of life for {in_words(self.seconds)} ({where}, {how})"


class StallWatch:
    """Told again and again what the processes answer, it says who has stalled.

    Time counts as it goes by between two looks, but never more than twice what is usual between
    them: a machine that was suspended, with watcher and watched, has not stalled.

    Args:
        ranks: of the processes.
        minutes: without a sign of life that are too long; None: three, or ten times the median
            step, whichever is more.
        in_step: whether they take each step together, as the workers of one job do.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        ranks: Collection[int],
        minutes: float | None,
        in_step: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = None if minutes is None else 60 * minutes
        self._clock, self._looked, self.in_step = clock, clock(), in_step
        self._signs = dict.fromkeys(ranks, Sign())
        self._silent = dict.fromkeys(ranks, 0.0)
        self._unanswered = dict.fromkeys(ranks, 0.0)
        self.every = min(5.0, (self._seconds or LEAST_SECONDS) / 10)

    @property
    def is_due(self) -> bool:
        """Whether it is time for a look."""
        return self._clock() - self._looked >= self.every

    @property
    def signs(self) -> dict[int, Sign]:
        """The last sign of each."""
        return dict(self._signs)

    def rest(self, rank: int) -> None:
        """A process has nothing to do: it is silent by right."""
        self._silent[rank] = self._unanswered[rank] = 0.0

    def forget(self, rank: int) -> None:
        """Another process has taken its place."""
        self._signs[rank], self._silent[rank], self._unanswered[rank] = Sign(), 0.0, 0.0

    def look(self, answers: Mapping[int, Sign]) -> list[Stall]:
        """Takes in the answers since the last look.

        Args:
            answers: rank → its sign, of those that answered.

        Returns:
            Who has stalled, and none who only waits for them: those that do not answer; where all
            do, those that are least far.
        """
        now = self._clock()
        passed = min(now - self._looked, 2 * self.every)
        self._looked = now
        for rank, known in self._signs.items():
            sign = answers.get(rank)
            self._unanswered[rank] = self._unanswered[rank] + passed if sign is None else 0.0
            if sign is not None and sign.count != known.count:
                self._silent[rank] = 0.0
            else:
                self._silent[rank] += passed
            if sign is not None:
                self._signs[rank] = sign
        if any(sign.waits for sign in self._signs.values()):
            # Who writes a checkpoint waits for it as well, in a barrier.
            for rank, sign in self._signs.items():
                if sign.doing == CHECKPOINT and self._answers(rank):
                    self._silent[rank] = 0.0
        silent = [rank for rank in self._signs if self._silent[rank] > self._limit(rank)]
        if not silent:
            return []
        guilty = [rank for rank in silent if not self._answers(rank)]
        if not guilty:
            guilty = [rank for rank in silent if not self.in_step or self._is_last(rank)]
        return [
            Stall(rank, self._silent[rank], self._answers(rank), self._where(rank))
            for rank in guilty
        ]

    def _is_last(self, rank: int) -> bool:
        """Whether none is less far: whoever is further waits, perhaps for one with more time."""
        at_work = [sign for sign in self._signs.values() if sign.doing != OVER]
        sign = self._signs[rank]
        return (sign.turn, sign.place) == min((s.turn, s.place) for s in at_work)

    def _where(self, rank: int) -> Sign:
        """Its last sign, and for one that does not answer the last step that all took part in."""
        sign = self._signs[rank]
        steps = [s.step for r, s in self._signs.items() if r != rank and self._answers(r)]
        known = [step for step in steps if step is not None]
        if self._answers(rank) or not self.in_step or len(known) < len(steps) or not known:
            return sign
        return replace(sign, step=max(min(known), sign.step or 0))

    def _answers(self, rank: int) -> bool:
        return self._unanswered[rank] < max(2 * self.every, self._silent[rank] / 2)

    def _limit(self, rank: int) -> float:
        sign = self._signs[rank]
        if sign.doing == OVER:
            return float("inf")
        seconds = self._seconds
        if seconds is None:
            seconds = max(LEAST_SECONDS, TIMES_USUAL * (sign.usual or 0.0))
        slow = sign.first or sign.doing == CHECKPOINT
        waits = sign.step is None or (slow and self._answers(rank))
        return _GRACE * seconds if waits else seconds


def in_words(seconds: float) -> str:
    """Seconds as people say them."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
