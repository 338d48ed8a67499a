"""The driver's memory: every event goes to the ledger, the state, and whoever watches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.search.ledger import Ledger
from pipelines.search.state import SearchState


class Recorder:
    """Writes an event to disk first, then lets everybody know.

    Args:
        ledger: the writing end of the search's ledger.
        state: what the ledger's events add up to so far.
        notify: called after each event, for instance to wake the tracker.
    """

    def __init__(
        self, ledger: Ledger, state: SearchState, notify: Callable[[], None] | None = None
    ) -> None:
        self.state = state
        self.notify = notify
        self.until_room: Callable[[Callable[[], None]], None] | None = None
        self._ledger = ledger
        self._lock = threading.Lock()
        self._folder = ledger.search.folder.resolve()
        self._store = ledger.search.store

    def add(self, kind: str, **fields: Any) -> None:
        """Records one event; a `checkpoint` in the search's folder relative to it."""
        self.add_all([(kind, fields)])

    def add_all(self, events: Sequence[tuple[str, dict[str, Any]]], *, wait: bool = True) -> None:
        """Records events that belong together: all of them or, if the driver is killed, none.

        Args:
            events: kinds with their fields.
            wait: for room where the disk is full.
        """
        located = [(kind, self._located(fields)) for kind, fields in events]

        def write() -> None:
            with self._lock:  # the system's sampler has a thread of its own
                for event in self._ledger.append_all(located):
                    self.state.apply(event)

        if wait and self.until_room is not None:
            self.until_room(write)
        else:
            write()
        if self.notify is not None:
            self.notify()

    def _located(self, fields: dict[str, Any]) -> dict[str, Any]:
        checkpoint = fields.get("checkpoint")
        if checkpoint is not None and self._store is not None:
            relative = self._store.relative(checkpoint)
            return fields if relative is None else fields | {"checkpoint": relative}
        if checkpoint is None or not Path(checkpoint).is_relative_to(self._folder):
            return fields
        return fields | {"checkpoint": str(Path(checkpoint).relative_to(self._folder))}
