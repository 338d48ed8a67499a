"""One driver at a time where no file can be locked."""

import json
import os
import socket
import threading
import time

import psutil
import pytest

from pipelines.errors import UserError
from pipelines.storage.claim import Claim, LostClaimError, Times, live_driver
from pipelines.storage.segments import Segment

# S3 tells times in whole seconds.
QUICK = Times(lease=3.0, beat=0.4, look=0.1)


def names(store):
    return [entry.name for entry in store.entries("drivers")]


def make_foreign(store, claim, **changes):
    """Makes a claim one of another machine's process."""
    name = claim._driver.name
    values = json.loads(store.read(name)) | {"machine": "another", "who": "ann@other"}
    store.write(name, json.dumps(values | changes).encode())


def silent(claim):
    """Its driver hangs, as when the machine sleeps: no sign of life, and no way to give it back."""
    claim._closing.set()
    claim._thread.join()


def test_a_second_driver_is_refused_as_soon_as_the_first_shows_that_it_lives(store):
    first = Claim(store, times=QUICK)
    said, host, pid = [], socket.gethostname(), os.getpid()
    patient = Times(lease=1e6, beat=QUICK.beat)  # it need not wait for the end of that
    with pytest.raises(UserError, match=rf"is already run by process {pid} of .*@{host}") as found:
        Claim(store, say=said.append, times=patient)
    assert found.value.exit_code == 1
    assert len(said) == 1 and "waiting up to 1000000 s" in said[0]
    assert live_driver(store) == first._driver
    assert [name.rpartition(".")[2] for name in names(store)] == ["alive", "json"]
    first.check()
    first.release()
    assert live_driver(store) is None and names(store) == []
    Claim(store, times=QUICK).release()


def test_one_of_this_machine_that_is_gone_is_replaced_at_once(store):
    first = Claim(store, times=QUICK)
    silent(first)
    values = json.loads(store.read(first._driver.name)) | {"pid": 2**22 + 1}
    store.write(first._driver.name, json.dumps(values).encode())
    assert live_driver(store) is None
    second = Claim(store, say=pytest.fail, times=QUICK)  # it does not wait
    assert second.generation == first.generation + 1
    second.release()


def test_a_clock_that_was_set_does_not_make_a_driver_one_that_is_gone(store, monkeypatch):
    first = Claim(store, times=QUICK)
    before = psutil.boot_time()
    monkeypatch.setattr(psutil, "boot_time", lambda: before + 3600)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: before + 3600)
    assert live_driver(store) == first._driver
    with pytest.raises(UserError, match="already run by"):
        Claim(store, times=Times(lease=1e6, beat=QUICK.beat))
    first.release()


@pytest.mark.parametrize("successor_ends", [False, True])
def test_one_of_another_machine_is_replaced_when_its_lease_is_over(store, successor_ends):
    first = Claim(store, times=QUICK)
    silent(first)
    make_foreign(store, first)
    said, heard = [], max(entry.mtime for entry in store.entries("drivers"))
    second = Claim(store, say=said.append, times=QUICK)
    assert len(said) == 1 and "ann@other drives this search, or did" in said[0]
    assert time.time() - heard > QUICK.lease
    if successor_ends:
        second.release()
    # The first wakes up: it must not count anything as written.
    with pytest.raises(LostClaimError, match="has taken over this search"):
        first.check()
    if not successor_ends:
        second.check()
        second.release()


def test_a_driver_that_was_replaced_gives_no_more_signs_of_life(store):
    first = Claim(store, times=QUICK)
    store.delete(first._driver.name)
    first._thread.join(20)
    assert not first._thread.is_alive()
    first.release()
    assert names(store) == []


def test_a_driver_that_was_away_and_not_replaced_goes_on(store):
    claim = Claim(store, times=QUICK)
    silent(claim)
    time.sleep(QUICK.lease + 0.2)
    claim.check()
    claim.release()


@pytest.mark.parametrize("error", [FileNotFoundError("withdrawn"), OSError(28, "disk full")])
def test_a_look_that_fails_each_time_ends_no_signs_of_life(store, error):
    def look():
        raise error

    claim = Claim(store, look=look, times=QUICK)
    deadline = time.monotonic() + 30
    heard = []
    while len(set(heard)) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
        heard += [entry.mtime for entry in store.entries("drivers") if "alive" in entry.name]
    assert len(set(heard)) >= 2 and claim._thread.is_alive()
    claim.release()


def test_of_drivers_that_start_together_at_most_one_goes_on(store):
    held, refused = [], []

    def start():
        try:
            held.append(Claim(store, times=QUICK))
        except UserError as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1 and len(refused) == 3
    held[0].check()
    held[0].release()


def test_generations_are_above_all_that_wrote(store):
    store.write(Segment(1, 1, 7).name, b"")
    claim = Claim(store, times=QUICK)
    assert claim.generation == 8
    claim.release()


@pytest.mark.parametrize("alive", [True, False])
def test_a_driver_of_an_older_version_is_seen(store, alive):
    """It wrote its signs of life into the claim itself."""
    before = {"token": "a1", "generation": 3, "who": "ann@other", "machine": "another", "pid": 7}
    before |= {"started": 1.0, "held": True, "beat": 1, "time": 1.0}
    name = "drivers/000003-a1.json"
    ended = threading.Event()

    def beat():
        while True:
            store.write(name, json.dumps(before).encode())
            if not alive or ended.wait(0.4):
                return

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        if alive:
            with pytest.raises(UserError, match="already run by process 7 of ann@other"):
                Claim(store, times=QUICK)
        else:
            thread.join()
            claim = Claim(store, times=QUICK)
            assert claim.generation == 4 and name not in names(store)
            claim.release()
    finally:
        ended.set()
        thread.join()
