"""The ledger of a search in an object store: each batch of events is there before it counts."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from pipelines.errors import UserError
from pipelines.search.ledger import Ledger
from pipelines.search.refresh import fetch_outside, fetch_request, pulling
from pipelines.storage.claim import Claim, Times
from pipelines.storage.room import DiskFull
from pipelines.storage.search_files import Search
from pipelines.storage.segments import Segment, pull
from pipelines.storage.store import ObjectStore, StoreError

logger = logging.getLogger(__name__)

# A store that is away is waited for; trainings go on meanwhile.
_PATIENCE_SECONDS, _PAUSE_SECONDS = 900.0, 5.0


def open_ledger(search: Search, say: Callable[[str], None] = logger.warning) -> Ledger:
    """The writing end of a search's ledger, wherever it lies.

    Args:
        search: where it keeps its files.
        say: told what it waits for.

    Raises:
        UserError: another driver holds it, or it cannot be written.
    """
    store = search.store
    return Ledger(search) if store is None else StoredLedger(search, store, say=say)


class StoredLedger(Ledger):
    """A ledger whose truth is in an object store; the file in the folder is a copy.

    A batch of events is first put there, as one object, and then appended to the file. So a
    driver killed at any moment leaves all of a batch in the store or none of it, and whatever was
    recorded is found again from any machine.

    Args:
        search: where it keeps its files.
        store: what its folder stands for.
        say: told what it waits for.
        times: how patient the claim on the search is.
        patience: seconds that a batch is tried for while the store does not answer.

    Raises:
        UserError: another driver is at work, here or elsewhere; or the store cannot be used.
    """

    def __init__(
        self,
        search: Search,
        store: ObjectStore,
        *,
        say: Callable[[str], None] = logger.warning,
        times: Times = Times(),  # noqa: B008 — frozen
        patience: float = _PATIENCE_SECONDS,
    ) -> None:
        self._store, self._say, self._times, self._patience = store, say, times, patience
        self._closing = threading.Event()
        self._number = 0
        self._broken: UserError | None = None
        super().__init__(search)
        # One thread: what Ctrl-C interrupts the wait for is written to its end all the same.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ledger")

    def _catch_up(self) -> None:
        self._claim = Claim(
            self._store,
            say=self._say,
            look=lambda: fetch_request(self.search, self._store),
            times=self._times,
        )
        try:
            with pulling(self.search):
                segments = pull(self._store, self.path)
                fetch_outside(self.search, self._store)
        except BaseException:
            with suppress(StoreError):  # it goes stale by itself
                self._claim.release()
            raise
        self._number = segments[-1].last if segments else 0

    def _write(self, content: bytes) -> None:
        self._writer.submit(self._put, content).result()

    def _put(self, content: bytes) -> None:
        if self._broken is not None:
            raise self._broken
        try:
            self._put_there(content)
        except UserError as error:
            # What is in the store is not known now; whoever opens the ledger next will see.
            self._broken = error
            raise
        try:
            super()._write(content)
        except DiskFull as error:
            # Not to be tried again as a whole: in the store it is already.
            self._broken = UserError(str(error), exit_code=1)
            raise self._broken from None

    def _put_there(self, content: bytes) -> None:
        number = self._number + 1
        segment = Segment(number, number, self._claim.generation)
        deadline, told = time.monotonic() + self._patience, False
        while True:
            try:
                self._store.write(segment.name, content)
                self._claim.check()
                break
            except StoreError as error:
                if time.monotonic() > deadline or self._closing.is_set():
                    raise UserError(
                        f"{error}; what is not in the ledger by now is done again: type the same "
                        "command to go on",
                        exit_code=1,
                    ) from None
                if not told:
                    logger.warning("%s; waiting for it", error)
                told = True
                self._closing.wait(_PAUSE_SECONDS)
        self._number = number

    def close(self) -> None:
        """See `Ledger`."""
        self._closing.set()
        self._writer.shutdown(wait=True)
        try:
            self._claim.release()
        except StoreError as error:  # it runs out by itself
            logger.warning("%s", error)
        super().close()
