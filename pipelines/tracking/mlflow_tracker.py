"""Logs a search to MLflow from a thread beside the driver; see `mirror` for what is sent."""

from __future__ import annotations

import logging
import threading
import time
from typing import Literal

from pipelines.search.halt import SearchEnded
from pipelines.storage.search_files import Search
from pipelines.tracking.mirror import LedgerMirror
from pipelines.tracking.mlflow_errors import explain
from pipelines.tracking.tracking_store import TrackingStore

logger = logging.getLogger(__name__)

_BATCHING_SECONDS, _ARTIFACT_SECONDS, _CLOSING_SECONDS = 1.0, 60.0, 60.0


class MlflowTracker:
    """Logs a search to MLflow from a thread of its own.

        with MlflowTracker(search, store) as tracker:
            …                      # the driver appends to the ledger
            tracker.notify()       # after each append; costs nothing

    On leaving, what is left is sent; if the search is not complete its runs are ended as
    KILLED (left by an interrupt, a stop or the end of a budget) or FAILED (by another exception),
    and they run again under the same ids when the search is resumed.

    Args:
        search: Where it keeps its ledger.
        store: Where to log.
        retry_every: Seconds between two attempts while MLflow is not reachable.
    """

    def __init__(self, search: Search, store: TrackingStore, *, retry_every: float = 5.0) -> None:
        self._mirror = LedgerMirror(search, store)
        self._retry_every = retry_every
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._ending: str | None = None
        self._thread = threading.Thread(target=self._run, name="mlflow-tracker", daemon=True)

    def start(self) -> None:
        """Begins to send what is in the ledger."""
        self._thread.start()

    def notify(self) -> None:
        """Says that the ledger has grown."""
        self._wake.set()

    def close(self, status: Literal["finished", "interrupted", "failed"] = "finished") -> bool:
        """Sends the rest, ends the runs and gives whether MLflow has taken everything.

        If not, `tokenpool track rebuild` catches up.
        """
        self._ending = {"finished": None, "interrupted": "KILLED", "failed": "FAILED"}[status]
        self._closing.set()
        self._wake.set()
        self._thread.join(_CLOSING_SECONDS)
        done = not self._thread.is_alive() and self._mirror.caught_up
        if not done:
            logger.warning(
                "MLflow at %s did not take everything; nothing is lost: "
                "`tokenpool track rebuild %s` logs it later",
                self._mirror.store.shown,
                self._mirror.name,
            )
        return done

    def __enter__(self) -> MlflowTracker:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close("finished")
        else:
            in_order = issubclass(kind, KeyboardInterrupt | SystemExit | SearchEnded)
            self.close("interrupted" if in_order else "failed")

    def _run(self) -> None:
        last_artifacts, down, resumed = 0.0, False, True
        while True:
            closing = self._closing.is_set()
            self._wake.clear()
            due = closing or time.monotonic() - last_artifacts > _ARTIFACT_SECONDS
            try:
                self._mirror.read(resumed=resumed)
                resumed = False
                if closing and self._ending is not None:
                    self._mirror.interrupt(self._ending)
                self._mirror.send(with_artifacts=due)
                last_artifacts = time.monotonic() if due else last_artifacts
                if down:
                    logger.warning("MLflow is back: what waited has been logged")
                down = False
            except Exception as error:  # whatever MLflow or its database throws, training goes on
                if not down:
                    why = explain(self._mirror.store, error)
                    logger.warning("the search goes on, its logging to MLflow waits: %s", why)
                down = True
            if closing:
                return
            self._wake.wait(self._retry_every if down else _ARTIFACT_SECONDS)
            # What arrives within a moment goes out together.
            self._closing.wait(self._retry_every if down else _BATCHING_SECONDS)
