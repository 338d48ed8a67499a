"""How long a call takes, until the device is done."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

_WARM_UP, _LEAST_RUNS = 2, 5


def seconds_of(
    run: Callable[[], object], device: str, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one call on a device."""
    _wait_for(device)
    start = clock()
    run()
    _wait_for(device)
    return clock() - start


def median_ms(
    run: Callable[[], object], device: str, *, seconds: float = 0.0, least: int = _LEAST_RUNS
) -> float:
    """Median milliseconds of a call, over so many seconds and calls at least, after two more."""
    for _ in range(_WARM_UP):
        run()
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < deadline:
        times.append(seconds_of(run, device))
    return 1000 * statistics.median(times)


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
