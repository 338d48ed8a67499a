"""When a search has to end before it is done: its budget, and a stop that somebody asked for."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.config import BudgetConfig
from pipelines.search.state import SearchState
from pipelines.search.steady_clock import steady_time
from pipelines.storage.durable import write_text
from pipelines.storage.search_files import Search

_LOOK_SECONDS = 0.5


class SearchEnded(Exception):
    """The search ends in order before all stages are done; its text says why.

    Attributes:
        why: `budget`, `stop`, or `interrupt` for a stop by whoever sits at the terminal.
    """

    def __init__(self, why: str, reason: str) -> None:
        super().__init__(reason)
        self.why = why


class DeviceMeter:
    """Device-seconds that run up now and are in no report yet.

    A training job tells in each report what it has cost so far, so it is metered from its last
    report on; an actor tells nothing, and is metered for as long as it lives. May be asked and
    told from any thread.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def start(self, key: str, devices: float) -> None:
        """From now on so many devices are held under this name."""
        with self._lock:
            self._held[key] = (devices, self._clock())

    def take(self, key: str) -> float:
        """What has run up under a name since it started or was taken last; 0 if it is not held."""
        with self._lock:
            if key not in self._held:
                return 0.0
            devices, since = self._held[key]
            now = self._clock()
            self._held[key] = (devices, now)
            return devices * (now - since)

    def end(self, key: str) -> float:
        """`take`, and nothing is held under the name any more."""
        taken = self.take(key)
        with self._lock:
            self._held.pop(key, None)
        return taken

    @property
    def running(self) -> float:
        """What has run up under all names."""
        with self._lock:
            now = self._clock()
            return sum(devices * (now - since) for devices, since in self._held.values())


class Halt:
    """Tells whether the search must end now, and why. Cheap to ask, from any thread.

    Args:
        budget: what the search may use.
        state: what it has used.
        meter: what is running up.
        search: where a request to stop would lie.
        clock: seconds since the epoch, which never jump.
        wall: the time of day, which a deadline may be given as.
    """

    def __init__(
        self,
        budget: BudgetConfig,
        state: SearchState,
        meter: DeviceMeter,
        search: Search,
        clock: Callable[[], float] = steady_time,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._budget, self._state, self._meter = budget, state, meter
        self._search, self._clock, self._wall = search, clock, wall
        self._ended: SearchEnded | None = None
        self._since = 0.0
        self._looked = float("-inf")

    def request(self, reason: str, why: str = "stop") -> None:
        """Asks for the end from within this process, e.g. on a signal."""
        self._end(why, reason)

    @property
    def ended(self) -> SearchEnded | None:
        """Why the search must end, once it must; looks at most twice a second."""
        now = self._clock()
        if self._ended is None and not 0 <= now - self._looked < _LOOK_SECONDS:
            self._looked = now
            self._look(now)
        return self._ended

    @property
    def seconds(self) -> float:
        """For how long that has been known."""
        return self._clock() - self._since if self._ended is not None else 0.0

    def check(self) -> None:
        """Raises SearchEnded if the search must end."""
        ended = self.ended
        if ended is not None:
            raise ended

    def check_budget(self) -> None:
        """Raises SearchEnded if a limit is reached, whatever was asked for."""
        self._look_at_budget(self._clock())
        if self._ended is not None:
            raise self._ended

    def _look(self, now: float) -> None:
        request = read_request(self._search)
        if request is not None:
            self._end("stop", f"stopped by {request.who}")
        else:
            self._look_at_budget(now)

    def _look_at_budget(self, now: float) -> None:
        used = self._state.device_seconds + self._meter.running
        hours = self._budget.device_hours
        if hours is not None and used >= 3600 * hours:
            self._end(
                "budget",
                f"budget.device_hours {hours:g} is reached ({used / 3600:.3g} device-hours used)",
            )
            return
        if self._budget.deadline_time is not None:
            now = self._wall()
        left = seconds_left(self._budget, self._state, now)
        if left is not None and left <= 0:
            self._end("budget", f"budget.deadline {self._budget.deadline} is reached")

    def _end(self, why: str, reason: str) -> None:
        if self._ended is None:
            self._since = self._clock()
            self._ended = SearchEnded(why, reason)


def seconds_left(budget: BudgetConfig, state: SearchState, now: float) -> float | None:
    """Seconds until the deadline; None if there is none.

    A duration counts the time a driver was at work on the search, over all times that it was
    typed; a point in time is that.

    Args:
        budget: with the deadline.
        state: of the search, whose driver is at work.
        now: seconds since the epoch.
    """
    if budget.deadline_seconds is not None:
        return budget.deadline_seconds - state.seconds_at_work(now)
    return None if budget.deadline_time is None else budget.deadline_time - now


def budget_left(budget: BudgetConfig, state: SearchState, now: float) -> dict[str, float]:
    """What is left of each limit that is set: device_hours, seconds, trials; never below 0.

    Args:
        budget: the limits.
        state: what was used.
        now: seconds since the epoch.
    """
    left: dict[str, float] = {}
    if budget.device_hours is not None:
        left["device_hours"] = budget.device_hours - state.device_seconds / 3600
    seconds = seconds_left(budget, state, now)
    if seconds is not None:
        left["seconds"] = seconds
    if budget.trials is not None:
        left["trials"] = budget.trials - state.trials_begun
    return {name: max(0.0, value) for name, value in left.items()}


@dataclass(frozen=True)
class StopRequest:
    """Somebody wants a search to end.

    Attributes:
        who: `user@host`.
        time: seconds since the epoch.
    """

    who: str
    time: float


def request_stop(search: Search) -> StopRequest:
    """Leaves a request beside the ledger, which the driver finds within seconds."""
    request = StopRequest(f"{_user()}@{socket.gethostname()}", round(time.time(), 3))
    text = json.dumps({"who": request.who, "time": request.time})
    store = search.store
    if store is not None:  # the driver may be on another machine
        store.write(search.stop_request.name, text.encode())
    write_text(search.stop_request, text)
    return request


def read_request(search: Search) -> StopRequest | None:
    """The request that lies there, if any. What cannot be read is a request all the same."""
    try:
        content = search.stop_request.read_bytes()
    except OSError:
        return None
    try:
        values: dict[str, Any] = json.loads(content)
        return StopRequest(str(values["who"]), float(values["time"]))
    except (ValueError, KeyError, TypeError):
        return StopRequest("somebody", 0.0)


def withdraw_request(search: Search) -> None:
    """Removes what an earlier driver left unanswered, or has answered."""
    store = search.store
    if store is not None:
        store.delete(search.stop_request.name)
    search.stop_request.unlink(missing_ok=True)


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


@contextmanager
def ends_on_signals(halt: Halt) -> Iterator[None]:
    """SIGTERM, which batch systems send before they kill, and Ctrl-C end the search in order.

    A second Ctrl-C ends it at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupted(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Not by the screen, which may be in the midst of a line.
        os.write(2, b"\nending in order; Ctrl-C again ends it at once\n")
        halt.request("interrupted", why="interrupt")

    before = {
        signal.SIGTERM: signal.signal(
            signal.SIGTERM, lambda *_: halt.request("stopped by SIGTERM")
        ),
        signal.SIGINT: signal.signal(signal.SIGINT, interrupted),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
