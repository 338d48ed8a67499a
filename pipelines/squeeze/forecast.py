"""How long a squeeze will take: the work of its schedules times what a batch was seen to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

import tokenpool as tp
from pipelines.search.shared_prefixes import shared_work
from pipelines.search.timing import seconds_of
from tokenpool.cost import block_macs
from tune_spaces.image_halving import See
from tune_spaces.space import Candidate

_TIMED, _IMAGES = 2, 32

Schedules = Sequence[tuple[int, ...]]


class Work:
    """Counts multiply-accumulates as they are really done, and knows what one of them takes.

    Args:
        spec: of the model.
        method: it is pooled by.
    """

    def __init__(self, spec: tp.VitSpec, method: str) -> None:
        self._spec, self._method = spec, method

    def of(self, schedules: Schedules) -> list[int]:
        """MACs each schedule adds for an image, in the order they are run in."""

        def cost(layer: int, incoming: int, kept: int) -> float:
            return block_macs(self._spec, layer, incoming, kept, self._method).total

        return [int(work) for _, work in shared_work(schedules, cost, self._spec.patches)]

    @property
    def dense(self) -> int:
        """MACs of an image without pooling."""
        return tp.vit_macs(
            self._spec, tp.Schedule.dense(self._spec.depth, self._spec.patches)
        ).total

    def of_search(self, search: Callable[[See], None]) -> int:
        """MACs of a whole search; it is played through with damages that look like true ones."""
        total = 0

        def see(candidates: Sequence[Candidate], start: int, stop: int) -> list[float]:
            nonlocal total
            schedules = [tuple(candidate.schedule) for candidate in candidates]
            total += sum(self.of(schedules)) * (stop - start)
            return [_damage(self._spec.patches, schedule) for schedule in schedules]

        search(see)
        return total

    def seconds_per_mac(self, run: Callable[[tuple[int, ...], int], None], most: int) -> float:
        """From a schedule of middling cost; the first run, which warms up, does not count.

        Args:
            run: scores a schedule on so many images.
            most: images there are.
        """
        images = min(_IMAGES, most)
        schedule = tuple(tp.Schedule.constant_rate(self._spec.depth, self._spec.patches, 0.87))
        took = [seconds_of(lambda: run(schedule, images), "cpu") for _ in range(1 + _TIMED)]
        return min(took[1:]) / images / sum(self.of([schedule]))


def _damage(patches: int, schedule: tuple[int, ...]) -> float:
    rates = -np.diff(np.log([patches, *schedule]))
    return float((rates**2).sum()) + 1e-6


def in_words(seconds: float) -> str:
    """A time for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
