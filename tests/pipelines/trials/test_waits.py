"""How long a job waits for room, by a clock of our own."""

import pytest

from pipelines.trials.waits import GONE, TAKEN, RoomWait, StorageWait


def tries(wait, clock, could_hold, seconds, every=180.0):
    """What is told while it tries again and again for so long."""
    told, end = [], clock[0] + seconds
    while clock[0] < end:
        begun = clock[0]
        clock[0] += every
        told += [line] if (line := wait.goes_on(begun, could_hold)) else []
    return told


def test_room_is_waited_for_long_where_others_have_it_and_shorter_where_it_is_gone():
    clock = [0.0]
    wait = RoomWait("t0 (2 workers of 1 CPU)", lambda: clock[0])
    (line,) = tries(wait, clock, True, TAKEN - 3600)
    assert line == (
        "t0 (2 workers of 1 CPU): waits for room on the cluster, 12 hours at most: others have it"
    )
    # Now a node dies. How long others had it before does not count against that.
    (line,) = tries(wait, clock, False, GONE - 180)
    assert line.endswith("30 minutes at most: the cluster is too small now")
    with pytest.raises(RuntimeError, match="no room for them within 30 minutes, the cluster is"):
        tries(wait, clock, False, 1000)


def test_nobody_waits_for_ever_however_nodes_come_and_go():
    clock = [0.0]
    wait = RoomWait("t0", lambda: clock[0])
    number = 0
    while clock[0] < TAKEN - 600:
        tries(wait, clock, number % 2 == 0, 600)
        number += 1
    with pytest.raises(RuntimeError, match="within 12 hours"):
        tries(wait, clock, True, 1200)
    wait.over()
    assert len(tries(wait, clock, True, 3600)) == 1


@pytest.mark.parametrize(
    ("newest", "seconds", "most"),
    [
        ("epoch-0003", 60.0, 15 * 60 + 60),
        (None, 60.0, 15 * 60 + 60),  # it does not even say how far the job is
        ("epoch-0003", 7200.0, 7200),  # it reads and takes nothing: each try takes hours
        ("", 7200.0, 7200),  # so it does from the first checkpoint on
    ],
)
def test_a_storage_that_takes_nothing_is_tried_for_so_long_and_no_longer(newest, seconds, most):
    clock = [50_000.0]  # hours of training before that
    wait = StorageWait(15, lambda: newest, lambda: clock[0])
    assert wait.goes_on(0.0)
    for _ in range(1000):
        begun = clock[0]
        clock[0] += seconds
        if not wait.goes_on(begun):
            break
    assert 15 * 60 < clock[0] - 50_000 <= most


@pytest.mark.parametrize("answers", [True, False])
def test_another_failure_hours_later_is_waited_for_as_the_first_was(answers):
    clock, newest = [9000.0], [3]
    wait = StorageWait(15, lambda: f"epoch-{newest[0]:04d}" if answers else None, lambda: clock[0])
    assert wait.goes_on(0.0)
    for newest[0] in range(4, 9):
        begun = clock[0]
        clock[0] += 9000  # in which it trained
        assert wait.goes_on(begun)
