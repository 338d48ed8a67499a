"""One driver at a time where no file can be locked."""

import json
import threading
import time

import pytest

from pipelines.errors import UserError
from pipelines.storage.claim import Claim, LostClaimError, Times, live_driver

# S3 tells times in whole seconds.
QUICK = Times(lease=3.0, beat=0.4, look=0.1)


def elsewhere(store, **changes):
    """Makes the only claim there is one of another machine's."""
    (entry,) = store.entries("drivers")
    claim = json.loads(store.read(entry.name)) | {"machine": "another", "who": "ann@other"}
    store.write(entry.name, json.dumps(claim | changes).encode())


def silent(claim):
    """Its driver hangs, as when the machine sleeps: no sign of life, and no way to give it back."""
    claim._closing.set()
    claim._thread.join()


def test_a_second_driver_is_refused_as_soon_as_the_first_shows_that_it_lives(store):
    first = Claim(store, times=QUICK)
    said, begun = [], time.monotonic()
    with pytest.raises(UserError, match="is already run by") as found:
        Claim(store, say=said.append, times=QUICK)
    assert found.value.exit_code == 1 and time.monotonic() - begun < QUICK.lease
    assert len(said) == 1 and "waiting up to 3 s" in said[0]
    assert live_driver(store) is not None and len(store.entries("drivers")) == 1
    first.release()
    assert live_driver(store) is None and store.entries("drivers") == []
    Claim(store, times=QUICK).release()


def test_one_of_this_machine_that_is_gone_is_replaced_at_once(store):
    first = Claim(store, times=QUICK)
    silent(first)
    (entry,) = store.entries("drivers")
    claim = json.loads(store.read(entry.name)) | {"pid": 2**22 + 1}
    store.write(entry.name, json.dumps(claim).encode())
    assert live_driver(store) is None
    begun = time.monotonic()
    second = Claim(store, times=QUICK)
    assert time.monotonic() - begun < 1.0
    assert second.generation == first.generation + 1
    second.release()


def test_one_of_another_machine_is_replaced_when_its_lease_is_over(store):
    first = Claim(store, times=QUICK)
    silent(first)
    elsewhere(store)
    begun = time.monotonic()
    second = Claim(store, times=QUICK)
    assert QUICK.lease - 1.1 < time.monotonic() - begun < QUICK.lease + 3
    # The first wakes up: it must not count anything as written.
    with pytest.raises(LostClaimError, match="drives this search now"):
        first.check()
    assert first.lost
    second.check()
    second.release()


def test_a_driver_that_was_away_and_not_replaced_goes_on(store):
    claim = Claim(store, times=QUICK)
    silent(claim)
    time.sleep(QUICK.lease + 0.2)
    claim.check()
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
    claim = Claim(store, 7, times=QUICK)
    assert claim.generation == 8
    claim.release()
