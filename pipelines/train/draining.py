"""A machine that is to be taken away, with notice: its job's workers leave it with a checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist

_KEY = "departure"


class NodeDrained(Exception):
    """A machine of the job's is to be taken away; all that was done is in its newest checkpoint."""


class Departure:
    """Lets all ranks of a job leave after the same step, once one of them has heard why.

    No rank ends a step before all have begun it, as it waits for their gradients. So what one has
    put into the store after a step all find there after the next.

    Args:
        heard: why this rank knows that the job must leave; empty as long as it need not.
        store: of the job's process group.
    """

    def __init__(self, heard: Callable[[], str], store: dist.Store | None = None) -> None:
        self._heard = heard
        self._store = store or dist.distributed_c10d._get_default_store()
        self._from, self._why = 0, ""

    def after(self, step: int) -> str:
        """Why to leave after a step; to be asked by every rank after each."""
        if not self._why:
            self._look(step)
        return self._why if step >= self._from else ""

    def _look(self, step: int) -> None:
        if self._store.check([_KEY]):
            number, _, self._why = self._store.get(_KEY).decode().partition(" ")
            self._from = int(number)
        elif why := self._heard():
            self._from, self._why = step + 1, why
            self._store.set(_KEY, f"{self._from} {why}")
