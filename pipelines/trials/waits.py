"""How long a job waits for what is nobody's fault: room on the cluster, room in its storage."""

from __future__ import annotations

import time
from collections.abc import Callable

# While others have what it needs, and while the cluster as it is could not hold it; in seconds.
TAKEN, GONE = 12 * 3600.0, 1800.0


class RoomWait:
    """A job for whose workers there is no room.

    Args:
        who: names the job and what it needs.
        clock: seconds, never going back.
    """

    def __init__(self, who: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._who, self._clock = who, clock
        self.over()

    def over(self) -> None:
        """There was room."""
        self._since: float | None = None
        self._gone_since: float | None = None
        self._told: bool | None = None

    def goes_on(self, begun: float, could_hold: bool) -> str:
        """The line to be told after a try that found no room; empty where it was told before.

        Args:
            begun: when the try began.
            could_hold: whether the cluster as it is would hold the job, were it alone there.

        Raises:
            RuntimeError: it has waited long enough.
        """
        now = self._clock()
        self._since = begun if self._since is None else self._since
        if could_hold:
            self._gone_since = None
        elif self._gone_since is None:
            self._gone_since = begun
        why = "others have it" if could_hold else "the cluster is too small now"
        for since, most in ((self._since, TAKEN), (self._gone_since, GONE)):
            if since is not None and now - since > most:
                raise RuntimeError(
                    f"{self._who}: there was no room for them within {_span(most)}, {why}: look at "
                    "the cluster, and type the same command to try again"
                )
        if could_hold == self._told:
            return ""
        self._told = could_hold
        most = TAKEN if could_hold else GONE
        return f"{self._who}: waits for room on the cluster, {_span(most)} at most: {why}"


class StorageWait:
    """A job that could not write to its storage and is tried again.

    Args:
        minutes: without a checkpoint more, after which it is not.
        stored: what names its newest checkpoint, "" where it has none; None where nobody answers.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        minutes: float,
        stored: Callable[[], str | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._minutes, self._stored, self._clock = minutes, stored, clock
        self._since: float | None = None
        self._failed_at: str | None = None

    def goes_on(self, begun: float) -> bool:
        """Whether to try again, after a try that could not write.

        Args:
            begun: when the try began.
        """
        now, newest = self._clock(), self._stored()
        # It got on since the last failure: this is another one, perhaps hours later. Where nobody
        # answers how far it is, a long try has got on.
        other = now - begun > 60 * self._minutes if newest is None else newest != self._failed_at
        if self._since is None or other:
            self._since = now
            self._failed_at = self._failed_at if newest is None else newest
        return now - self._since <= 60 * self._minutes


def _span(seconds: float) -> str:
    return f"{seconds / 3600:g} hours" if seconds >= 7200 else f"{seconds / 60:g} minutes"
