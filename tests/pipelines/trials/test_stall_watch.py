"""Who has stalled, by a clock of our own: nothing here waits."""

import re

import pytest

from pipelines.train.life_signs import CHECKPOINT, DATA, EVALUATION, OVER, STEP, LifeSigns
from pipelines.trials.last_signs import LastSign, forget_last_signs, read_last_signs
from pipelines.trials.last_signs import write_last_signs as write
from pipelines.trials.stall_watch import StallWatch


class World:
    """Workers whose steps take a second each, unless they are told otherwise."""

    def __init__(self, count=2, minutes=None, in_step=True):
        self.now = 0.0
        self.watch = StallWatch(range(count), minutes, in_step, clock=lambda: self.now)
        self.workers = [LifeSigns(lambda: self.now) for _ in range(count)]
        self.dumb = set()

    def look(self):
        """One look after the usual time."""
        self.now += self.watch.every
        assert self.watch.is_due
        return self.watch.look(
            {rank: w.read() for rank, w in enumerate(self.workers) if rank not in self.dumb}
        )

    def steps(self, count, seconds=1.0, ranks=None):
        for _ in range(count):
            for rank in range(len(self.workers)) if ranks is None else ranks:
                self.workers[rank].begin(DATA)
                self.workers[rank].begin(STEP)
                self.workers[rank].did()
            self.now += seconds

    def until_stall(self, most=100_000.0):
        begun = self.now
        while self.now - begun < most:
            if found := self.look():
                return found, self.now - begun
        return [], most


def test_who_works_is_left_alone():
    world = World()
    for _ in range(500):
        world.steps(1, seconds=0.0)
        assert world.look() == []


def test_a_stopped_process_is_named_and_not_who_waits_for_it():
    world = World()
    world.steps(7)
    world.look()
    world.steps(2)  # of which rank 1 tells no more
    world.workers[0].begin(DATA)
    world.workers[0].begin(STEP)  # computes, and waits for rank 1 in a collective
    world.dumb = {1}
    (stall,), seconds = world.until_stall()
    assert (stall.rank, stall.answers, stall.sign.step) == (1, False, 9)
    assert 175 < seconds <= 180 + 3 * world.watch.every
    said = r"no sign of life for 3\.\d min \(last step 9, its process does not answer\)"
    assert re.fullmatch(said, stall.text)


def test_a_stuck_loader_is_named_and_not_who_waits_in_the_collective():
    world = World(3)
    world.steps(7)
    for rank in range(3):
        world.workers[rank].begin(DATA)
    for rank in (0, 2):
        world.workers[rank].begin(STEP)
    (stall,), _ = world.until_stall()
    assert (stall.rank, stall.answers) == (1, True)
    assert stall.text.endswith("(last step 7, waiting for data)")


def test_a_rank_that_is_behind_within_an_evaluation():
    world = World()
    world.steps(7)
    for worker in world.workers:
        worker.begin(EVALUATION)
    for _ in range(5):
        world.workers[0].beat()
    world.workers[1].beat()
    (stall,), _ = world.until_stall()
    assert (stall.rank, stall.sign.doing) == (1, EVALUATION)


def test_a_collective_that_all_hang_in_is_everybodys():
    world = World(3)
    world.steps(7)
    stalls, _ = world.until_stall()
    assert [stall.rank for stall in stalls] == [0, 1, 2]


def test_slow_steps_get_ten_times_their_median_and_a_given_limit_is_kept_to():
    for minutes, least in ((None, 10 * 60.0), (1.0, 60.0)):
        world = World(minutes=minutes)
        world.steps(5, seconds=60.0)
        _, seconds = world.until_stall()
        assert least < seconds <= least + 3 * world.watch.every, minutes


@pytest.mark.parametrize("start", [True, False])
def test_the_start_and_checkpoints_get_ten_times_as_long(start):
    world = World(minutes=1.0)
    if not start:
        world.steps(3)
        for worker in world.workers:
            worker.begin(CHECKPOINT)
    stalls, seconds = world.until_stall()
    assert 600 < seconds <= 600 + 3 * world.watch.every
    assert ("no step done yet" in stalls[0].text) == start


def test_a_first_evaluation_gets_ten_times_as_long_as_a_later_one():
    for before, limit in ((0, 600), (1, 60)):
        world = World(minutes=1.0)
        world.steps(3)
        for worker in world.workers:
            for _ in range(before):
                worker.begin(EVALUATION)
                worker.beat()
            worker.begin(EVALUATION)
        _, seconds = world.until_stall()
        assert limit < seconds <= limit + 3 * world.watch.every, before


def test_who_waits_for_one_that_has_more_time_has_not_stalled():
    world = World(minutes=1.0)
    world.steps(3)
    for worker in world.workers:
        worker.begin(EVALUATION)
    world.workers[0].beat()  # and waits in a collective for rank 1, which compiles
    (stall,), seconds = world.until_stall()
    assert stall.rank == 1 and seconds > 600


def test_who_is_stopped_while_it_writes_a_checkpoint_gets_no_longer():
    world = World(minutes=1.0)
    world.steps(3)
    for worker in world.workers:
        worker.begin(CHECKPOINT)
    world.look()
    world.dumb = {0}
    (stall,), seconds = world.until_stall()
    assert stall.rank == 0
    # A part of it goes by until it is sure that there is no answer.
    assert seconds <= 60 + 3 * world.watch.every


def test_who_waits_for_a_full_disk_has_not_stalled_nor_have_those_at_its_barrier():
    world = World(minutes=1.0)
    world.steps(3)
    for worker in world.workers:
        worker.begin(CHECKPOINT)
    for _ in range(1000):
        world.workers[0].wait("the disk is full")
        assert world.look() == []
    world.workers[0].wait("")
    assert (world.workers[0].read().turn, world.workers[0].read().place) == (
        world.workers[1].read().turn,
        world.workers[1].read().place,
    )
    _, seconds = world.until_stall()
    assert 600 < seconds <= 600 + 3 * world.watch.every  # it counts again


def test_who_is_done_waits_for_ever():
    world = World()
    world.steps(3)
    for worker in world.workers:
        worker.begin(OVER)
    assert world.until_stall() == ([], 100_000.0)


def test_a_suspended_machine_has_not_stalled():
    world = World(minutes=1.0)
    world.steps(3)
    world.look()
    world.now += 3600
    assert world.look() == []  # the first look after an hour: nobody had a chance to get on
    world.steps(1)
    assert world.look() == []


def test_who_rests_or_is_new_is_silent_by_right():
    world = World(minutes=1.0, in_step=False)
    world.steps(3)
    for _ in range(100):
        world.watch.rest(0)
        world.watch.rest(1)
        assert world.look() == []
    stalls, _ = world.until_stall()
    assert [stall.rank for stall in stalls] == [0, 1]
    world.watch.forget(0)
    world.workers[0] = LifeSigns(lambda: world.now)
    (stall,), _ = world.until_stall()
    assert stall.rank == 1  # the new one has ten times as long for its start


def test_the_file_beside_a_job(tmp_path):
    signs = [LastSign(0, "a", 7, STEP, 1.5), LastSign(1, "b", None, DATA, 2.5)]
    write(tmp_path / "jobs" / "t0", signs)
    assert read_last_signs(tmp_path / "jobs" / "t0") == signs
    forget_last_signs(tmp_path / "jobs" / "t0")
    assert read_last_signs(tmp_path / "jobs" / "t0") == []
    write(tmp_path / "jobs" / "t0", signs)
    (tmp_path / "jobs" / "t0" / "last-signs.json").write_text('[{"rank": 0, "other": 1}]')
    assert read_last_signs(tmp_path / "jobs" / "t0") == []  # of another version
