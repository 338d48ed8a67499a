"""One driver at a time for a search in an object store, as no file can be locked there.

A driver puts a claim under `drivers/`, once, and looks whether it is alone there. From then on it
writes a sign of life beside the claim every few seconds. Whoever comes later and sees that change
is refused. Once it has not changed for a minute its driver is taken for dead, at once where it was
a process of this machine that is gone: its claim is deleted, and only then the ledger is read.

So a batch of events counts if the claim is still there after the batch was put: whoever deletes
the claim later than that finds the batch. However long a driver hung, and whatever its clock says,
it learns of a successor before it counts anything as written, also of one that is gone again. What
it had on its way to the store then does not count, as `segments` tells. Of drivers that start
together at most one goes on: of any two, one has put its claim before the other looks. Ages decide
only how long a dead driver is waited for, and are told by the store's clock.

This holds where a write is seen by every later read and listing (S3, Google Cloud Storage, Azure).
Conditional writes are not used: pyarrow has none, and not every store that is otherwise fit does.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil

from pipelines.errors import UserError
from pipelines.storage.segments import segments_in
from pipelines.storage.store import ObjectStore

logger = logging.getLogger(__name__)

FOLDER = "drivers"


@dataclass(frozen=True)
class Times:
    """In seconds.

    Attributes:
        lease: a driver that has not been heard of for so long is taken for dead.
        beat: between two signs of life.
        look: between two looks for a request to stop.
    """

    lease: float = 60.0
    beat: float = 10.0
    look: float = 2.0


@dataclass(frozen=True)
class Driver:
    """Who has claimed a search.

    Attributes:
        token: of this claim alone.
        generation: above that of every driver before.
        who: `user@host`.
        machine: names the running system and its process numbers.
        pid: the driver's.
        started: when that process did, by its machine; read by older versions alone.
    """

    token: str
    generation: int
    who: str
    machine: str
    pid: int
    started: float

    @property
    def name(self) -> str:
        """Of the claim."""
        return f"{FOLDER}/{self.generation:06d}-{self.token}.json"

    @property
    def gone(self) -> bool:
        """Whether it was a process of this machine that has ended."""
        # When a process started is told differently once a clock was set, so it tells nothing: a
        # driver whose number another process has is waited for as one elsewhere is.
        return self.machine == _machine() and not psutil.pid_exists(self.pid)


class LostClaimError(UserError):
    """Another driver has taken this one's place."""


def live_driver(store: ObjectStore, now: float | None = None) -> Driver | None:
    """Who drives a search, as far as its claim tells; by this machine's clock.

    Args:
        store: the search's folder.
        now: seconds since the epoch.
    """
    at = time.time() if now is None else now
    for driver, heard in _claims(store).items():
        if not driver.gone and at - heard <= Times().lease:
            return driver
    return None


class Claim:
    """This process's claim on a search, with a thread for its signs of life.

    Args:
        store: the search's folder.
        say: told what it waits for.
        look: called every few seconds, e.g. to look for a request to stop.
        times: how patient it is.

    Raises:
        UserError: another driver is at work.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        say: Callable[[str], None] = logger.warning,
        look: Callable[[], None] = lambda: None,
        times: Times = Times(),
    ) -> None:
        self._store, self._say, self._look, self._times = store, say, look, times
        self._closing = threading.Event()
        self._driver = self._take()
        self._thread = threading.Thread(target=self._keep, name="claim", daemon=True)
        self._thread.start()

    @property
    def generation(self) -> int:
        """Of this driver."""
        return self._driver.generation

    def check(self) -> None:
        """To be called after each write, which counts only if this returns.

        Raises:
            LostClaimError: another driver has taken over.
            StoreError: that cannot be told, as the store does not answer.
        """
        if self._store.read(self._driver.name) is None:
            successor = next((driver.who for driver in _claims(self._store)), "another driver")
            raise LostClaimError(
                f"{successor} has taken over this search, as nothing was heard of this driver for "
                f"{self._times.lease:.0f} s: it ends here",
                exit_code=1,
            )

    def release(self) -> None:
        """Lets another driver in."""
        self._closing.set()
        self._thread.join()
        self._delete(self._driver)

    # ---------------------------------------------------------------- private

    def _take(self) -> Driver:
        first: dict[str, float] = {}  # token → when it was heard of as it was first seen
        while True:
            driver = self._put_claim()
            try:
                living = self._living_beside(driver)
            except BaseException:
                self._delete(driver)
                raise
            if not living:
                return driver
            self._delete(driver)
            for other, heard in living.items():
                # Each attempt of another that starts has a token of its own, so it has no signs.
                if first.get(other.token, heard) != heard:
                    raise UserError(
                        f"{self._store.address} is already run by process {other.pid} of "
                        f"{other.who}: wait for it, or stop it first",
                        exit_code=1,
                    )
            if not first:
                self._say(
                    f"process {other.pid} of {other.who} drives this search, or did until it died: "
                    f"waiting up to {self._times.lease:.0f} s to see which"
                )
            first = {other.token: heard for other, heard in living.items()} | first
            # Not in step with somebody who starts at the same moment.
            time.sleep(random.uniform(0.1, 0.3) * self._times.beat)

    def _put_claim(self) -> Driver:
        taken = [driver.generation for driver in _claims(self._store)]
        taken += [segment.generation for segment in segments_in(self._store)]
        driver = Driver(
            secrets.token_hex(8),
            max(taken, default=0) + 1,
            f"{_user()}@{socket.gethostname()}",
            _machine(),
            os.getpid(),
            psutil.Process().create_time(),
        )
        # Older versions pass over a claim that does not say that it is held.
        claim = asdict(driver) | {"held": True}
        self._store.write(driver.name, json.dumps(claim).encode())
        return driver

    def _living_beside(self, own: Driver) -> dict[Driver, float]:
        """The other drivers and when they were heard of; the claims of dead ones are deleted."""
        claims = _claims(self._store)
        now = max(claims.values(), default=0.0)  # its own claim is of this moment
        living = {}
        for driver, heard in claims.items():
            if driver.gone or now - heard > self._times.lease:
                self._delete(driver)
            elif driver != own:
                living[driver] = heard
        return living

    def _keep(self) -> None:
        beaten = 0.0
        while not self._closing.wait(self._times.look):
            try:
                # First, as a look that fails whenever it is tried must not end the signs of life.
                if time.monotonic() - beaten >= self._times.beat:
                    self.check()
                    self._store.write(_sign_of(self._driver.name), b"")
                    beaten = time.monotonic()
                self._look()
            except LostClaimError:
                return  # whoever writes next is told
            except (UserError, OSError) as error:  # the store away, this disk full: not for ever
                logger.warning("%s", error)

    def _delete(self, driver: Driver) -> None:
        self._store.delete(driver.name)
        self._store.delete(_sign_of(driver.name))


def _claims(store: ObjectStore) -> dict[Driver, float]:
    """The drivers that have claimed a search, and when each was last heard of."""
    times = {entry.name: entry.mtime or 0.0 for entry in store.entries(FOLDER)}
    names = [name for name in times if name.endswith(".json")]
    found = {}
    for name, content in zip(names, store.read_all(names), strict=True):
        try:
            values = json.loads(content or b"")
            # An older version wrote its signs of life into the claim.
            driver = Driver(**{field.name: values[field.name] for field in fields(Driver)})
        except (ValueError, TypeError, KeyError):
            continue  # withdrawn since it was listed, or no claim
        found[driver] = max(times[name], times.get(_sign_of(name), 0.0))
    return found


def _sign_of(name: str) -> str:
    return name.removesuffix(".json") + ".alive"


def _machine() -> str:
    """The running system and the space its process numbers are of: containers have their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {psutil.boot_time()}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())
