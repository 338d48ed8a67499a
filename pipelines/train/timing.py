"""Where the time of a training step goes."""

from __future__ import annotations

import time
from collections import defaultdict

import torch

from pipelines.train.report_keys import PHASES

_MARKS_HELD = 4096


class Stopwatch:
    """Gives all the time between two laps to a phase.

    On a GPU the laps are events in its stream: they cost the host nothing, and time counts where
    the GPU spends it, so a batch that is ready before the GPU asks for it costs none. On a CPU the
    host's clock is read.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._totals: dict[str, float] = defaultdict(float)
        self._last = 0.0
        self._marks: list[tuple[str | None, torch.cuda.Event]] = []

    def start(self) -> None:
        """Time counts from here on."""
        if self.device.type == "cuda":
            self._mark(None)
        else:
            self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """The time since the last lap, or the start, was `phase`."""
        if self.device.type == "cuda":
            self._mark(phase)
            return
        now = time.perf_counter()
        self._totals[phase] += now - self._last
        self._last = now

    def totals(self) -> dict[str, float]:
        """Seconds of each phase so far. Waits for the GPU."""
        self._fold()
        return dict(self._totals)

    def restore(self, totals: dict[str, float]) -> None:
        """Begins anew with these totals."""
        self._fold()
        self._totals = defaultdict(float, totals)

    def _mark(self, phase: str | None) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((phase, event))
        if len(self._marks) > _MARKS_HELD:
            self._fold()

    def _fold(self) -> None:
        if not self._marks:
            return
        self._marks[-1][1].synchronize()
        for (_, before), (phase, after) in zip(self._marks, self._marks[1:], strict=False):
            if phase is not None:
                self._totals[phase] += before.elapsed_time(after) / 1000
        self._marks = self._marks[-1:]


def shares(totals: dict[str, float]) -> dict[str, float]:
    """`share_data`, `share_forward` … as fractions of all the time that was counted."""
    whole = sum(totals.values())
    return {f"share_{phase}": totals.get(phase, 0.0) / whole if whole else 0.0 for phase in PHASES}
