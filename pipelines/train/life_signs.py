"""Signs of life of a process that works: what it did last, for whoever watches it from outside.

The work says what it begins and what it has done; another thread of the process answers whoever
asks (`read_sign`). A process that is stopped does not answer at all.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

STARTING, DATA, STEP = "starting", "waiting for data", "computing a step"
EVALUATION, CHECKPOINT, OVER = "evaluating", "writing a checkpoint", "over"

_STEPS_HELD = 64


@dataclass(frozen=True)
class Sign:
    """What a process told last.

    Attributes:
        count: grows with every sign of life.
        turn: grows with every change of what it does; the same on all ranks of a job that are
            equally far.
        place: signs since then: how far it is in what it does.
        doing: one of the words above.
        first: whether it never got on with that before; compilers may be at work.
        step: the last step that was done; None before the first.
        usual: median seconds of a step.
        waits: what it waits for from outside, in words; empty if for nothing.
    """

    count: int = 0
    turn: int = 0
    place: int = 0
    doing: str = STARTING
    first: bool = True
    step: int | None = None
    usual: float | None = None
    waits: str = ""


class LifeSigns:
    """Kept by the thread that works, read by any other.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sign = Sign()
        self._seconds: deque[float] = deque(maxlen=_STEPS_HELD)
        self._last: float | None = None
        self._begun: set[str] = set()

    def begin(self, doing: str) -> None:
        """From now on it does something else."""
        sign = self._sign
        self._sign = replace(
            sign,
            count=sign.count + 1,
            turn=sign.turn + 1,
            place=0,
            doing=doing,
            first=doing not in self._begun,
            waits="",
        )
        self._begun.add(doing)

    def wait(self, what: str) -> None:
        """It waits for something from outside, in the midst of what it does."""
        sign = self._sign
        self._sign = replace(sign, count=sign.count + 1, waits=what)

    def beat(self) -> None:
        """It got on with what it does."""
        sign = self._sign
        self._sign = replace(
            sign, count=sign.count + 1, place=sign.place + 1, first=False, waits=""
        )

    def did(self, step: int | None = None) -> None:
        """It has done a step, by default the next one."""
        now = self._clock()
        if self._last is not None:
            self._seconds.append(now - self._last)
        self._last = now
        number = (self._sign.step or 0) + 1 if step is None else step
        self.beat()
        self._sign = replace(self._sign, step=number)

    def read(self) -> Sign:
        """The last sign."""
        seconds = list(self._seconds)
        return replace(self._sign, usual=statistics.median(seconds) if seconds else None)


signs = LifeSigns()  # of this process


def read_sign() -> Sign:
    """The last sign of the process that this is called in."""
    return signs.read()
