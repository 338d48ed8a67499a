"""One driver at a time for a search in an object store, as no file can be locked there.

A driver puts an object of its own under `drivers/`, looks whether it is alone, and writes the
object anew every few seconds for as long as it lives. Whoever comes later and sees that object
change is refused; once it has not changed for a minute its driver is taken for dead, at once where
it was a process of this machine that is gone.

What this guarantees, with a store in which a write is seen by every later read and listing (S3,
Google Cloud Storage, Azure): of two drivers that start together at most one goes on, and a driver
that could not renew its claim for a minute (it hung, or was cut off) does not count a batch of
events as written before it has made sure that nobody has taken its place. Ages are told by the
store's clock alone, where it keeps times. What such a driver had on its way to the store does not
count, as `segments` tells. Conditional writes are not used: pyarrow knows none.
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
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from pipelines.errors import UserError
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
        started: when that process did, by its machine.
        held: whether it has found itself alone.
        beat: counts the signs of life.
        time: of this one, by its machine's clock.
    """

    token: str
    generation: int
    who: str
    machine: str
    pid: int
    started: float
    held: bool = False
    beat: int = 0
    time: float = 0.0

    @property
    def name(self) -> str:
        """Of the object."""
        return f"{FOLDER}/{self.generation:06d}-{self.token}.json"

    @property
    def gone(self) -> bool:
        """Whether it was a process of this machine that has ended."""
        if self.machine != _machine():
            return False
        try:
            return psutil.Process(self.pid).create_time() != self.started
        except psutil.NoSuchProcess:
            return True


@dataclass(frozen=True)
class _Seen:
    driver: Driver
    mtime: float

    def older_than(self, other: _Seen, seconds: float) -> bool:
        return other.mtime - self.mtime > seconds


class LostClaimError(UserError):
    """Another driver has taken this one's place."""


def live_driver(store: ObjectStore, now: float | None = None) -> Driver | None:
    """Who drives a search, as far as its claim tells; by this machine's clock.

    Args:
        store: the search's folder.
        now: seconds since the epoch.
    """
    at = time.time() if now is None else now
    for seen in _claims(store):
        alive = not seen.driver.gone and at - seen.mtime <= Times().lease
        if seen.driver.held and alive:
            return seen.driver
    return None


class Claim:
    """This process's claim on a search, renewed by a thread until it is released.

    Args:
        store: the search's folder.
        generation: of the last driver whose events are there; 0 for none.
        say: told what it waits for.
        look: called every few seconds, e.g. to look for a request to stop.
        times: how patient it is.

    Raises:
        UserError: another driver is at work.
    """

    def __init__(
        self,
        store: ObjectStore,
        generation: int = 0,
        *,
        say: Callable[[str], None] = logger.warning,
        look: Callable[[], None] = lambda: None,
        times: Times = Times(),
    ) -> None:
        self._store, self._say, self._look, self._times = store, say, look, times
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.lost = ""
        self._driver = Driver(
            secrets.token_hex(8),
            generation + 1,
            f"{_user()}@{socket.gethostname()}",
            _machine(),
            os.getpid(),
            psutil.Process().create_time(),
        )
        self._held_until = 0.0
        self._take()
        self._thread = threading.Thread(target=self._keep, name="claim", daemon=True)
        self._thread.start()

    @property
    def generation(self) -> int:
        """Of this driver."""
        return self._driver.generation

    def check(self) -> None:
        """To be called before and after each write.

        Raises:
            LostClaimError: another driver may have taken over.
            StoreError: that cannot be told, as the store does not answer.
        """
        if self.lost or time.monotonic() >= self._held_until:
            self._renew()

    def release(self) -> None:
        """Lets another driver in."""
        self._closing.set()
        self._thread.join()
        self._store.delete(self._driver.name)

    # ---------------------------------------------------------------- private

    def _take(self) -> None:
        watched: dict[str, int] = {}  # token → the beat it was first seen with
        told = False
        while True:
            self._driver = _with(self._driver, generation=self._next_generation(), held=False)
            self._write()
            try:
                if self._alone(watched, told) and self._hold():
                    return
            except BaseException:
                self._store.delete(self._driver.name)
                raise
            self._store.delete(self._driver.name)
            told = True
            # Not in step with somebody who starts at the same moment.
            time.sleep(random.uniform(0.1, 0.3) * self._times.beat)

    def _next_generation(self) -> int:
        known = [seen.driver.generation for seen in _claims(self._store)]
        return max([self._driver.generation - 1, *known]) + 1

    def _alone(self, watched: dict[str, int], told: bool) -> bool:
        """Whether no other driver lives; claims of dead ones are removed.

        Raises:
            UserError: one does.
        """
        alone = True
        own, others = self._seen()
        for other in others:
            driver = other.driver
            if driver.gone or other.older_than(own, self._times.lease):
                self._store.delete(driver.name)
                continue
            alone = False
            if driver.held and watched.setdefault(driver.token, driver.beat) != driver.beat:
                raise UserError(
                    f"{self._store.address} is already run by {driver.who}: wait for it, or stop "
                    "it first",
                    exit_code=1,
                )
            if not told:
                self._say(
                    f"{driver.who} drives this search, or did until it died: waiting up to "
                    f"{self._times.lease:.0f} s to see which"
                )
        return alone

    def _hold(self) -> bool:
        """Says that it goes on; False if somebody else has come in between."""
        begun = time.monotonic()
        self._driver = _with(self._driver, held=True)
        self._write()
        _, others = self._seen()
        self._held_until = begun + self._times.lease
        return not others

    def _renew(self) -> None:
        with self._lock:
            begun = time.monotonic()
            if not self.lost:
                self._write()
                _, others = self._seen()
                successor = next((other.driver for other in others if other.driver.held), None)
                if successor is not None:
                    self.lost = successor.who
                    self._store.delete(self._driver.name)
            if self.lost:
                raise LostClaimError(
                    f"{self.lost} drives this search now, as nothing was heard of this driver for "
                    f"{self._times.lease:.0f} s: it ends here",
                    exit_code=1,
                )
            self._held_until = begun + self._times.lease

    def _keep(self) -> None:
        beaten = time.monotonic()
        while not self._closing.wait(self._times.look):
            try:
                self._look()
                if time.monotonic() - beaten >= self._times.beat:
                    self._renew()
                    beaten = time.monotonic()
            except LostClaimError:
                return  # whoever writes next is told
            except UserError as error:  # the store is away: it may come back
                logger.warning("%s", error)

    def _write(self) -> None:
        self._driver = _with(self._driver, beat=self._driver.beat + 1, time=time.time())
        self._store.write(self._driver.name, json.dumps(asdict(self._driver)).encode())

    def _seen(self) -> tuple[_Seen, list[_Seen]]:
        claims = _claims(self._store)
        own = [seen for seen in claims if seen.driver.token == self._driver.token]
        others = [seen for seen in claims if seen.driver.token != self._driver.token]
        # Somebody has deleted it who took this driver for dead; `others` tell who.
        return (own or [_Seen(self._driver, self._driver.time)])[0], others


def _claims(store: ObjectStore) -> list[_Seen]:
    entries = store.entries(FOLDER)
    found = []
    contents = store.read_all([entry.name for entry in entries])
    for entry, content in zip(entries, contents, strict=True):
        try:
            driver = Driver(**json.loads(content or b""))
        except (ValueError, TypeError):
            continue  # withdrawn since it was listed, or no claim
        found.append(_Seen(driver, driver.time if entry.mtime is None else entry.mtime))
    return found


def _with(driver: Driver, **changes: object) -> Driver:
    return Driver(**(asdict(driver) | changes))


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
