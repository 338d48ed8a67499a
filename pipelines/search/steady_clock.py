"""The time of day as it was when this process began, and from then on by a clock that never jumps.

What a search has cost and until when it may work must not follow a clock that somebody sets. Time
for which the machine was suspended counts.
"""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_BEGAN = time.time() - time.clock_gettime(_CLOCK)


def steady_time() -> float:
    """Seconds since the epoch."""
    return _BEGAN + time.clock_gettime(_CLOCK)
