"""Room for jobs on a cluster that changes, by a clock and nodes of our own."""

import pytest

from cluster.capacity import Room, drivers_that_fit, jobs_that_fit
from cluster.placement import Gang, Node
from cluster.probe import ClusterError


class World:
    """A cluster and a clock that are set by hand; keeps what an autoscaler would be told."""

    def __init__(self, monkeypatch, *cpus):
        self.now, self.asked = 0.0, []
        self.set(*cpus)
        monkeypatch.setattr(Room, "_ask", lambda room, jobs: self.asked.append(jobs))

    def set(self, *cpus):
        self.nodes = [Node(str(i), c) for i, c in enumerate(cpus)]

    def room(self, **options):
        return Room(
            Gang(2, 1.0),
            look_every=5,
            nodes=lambda: self.nodes,
            clock=lambda: self.now,
            **{"most_drivers": 100} | options,
        )


def test_room_follows_a_cluster_that_grows_and_shrinks(monkeypatch):
    world = World(monkeypatch, 4)
    room = world.room()
    assert room(0, 10) == 2
    world.set(4, 4, 4)
    assert room(2, 8) == 2  # looked at a moment ago
    world.now = 6
    assert room(2, 8) == 6
    world.set(2)
    world.now = 12
    assert room(6, 4) == 1
    assert room(0, 0) == 0


def test_room_has_bounds_of_its_own(monkeypatch):
    world = World(monkeypatch, *[8] * 500)
    assert world.room(wanted=3)(0, 10) == 3
    assert world.room(wanted=3)(1, 1) == 2
    assert world.room(most_drivers=7)(0, 5000) == 7
    assert world.asked == []  # all that may run fits


def test_each_job_takes_memory_of_the_node_the_search_runs_on():
    assert drivers_that_fit(1 << 30) == 1
    assert drivers_that_fit(64 << 30) == 116
    assert drivers_that_fit(2048 << 30) == 999


def test_an_autoscaler_is_told_what_waits_until_it_has_come(monkeypatch):
    world = World(monkeypatch, 4)
    room = world.room(wanted=5)
    room(0, 10)
    world.now = 10
    room(2, 8)
    assert world.asked == [5]  # not oftener than every 20 seconds
    world.now = 21
    room(2, 8)
    assert world.asked == [5, 3]  # those that run have asked for themselves
    world.set(12)
    world.now = 42
    room(2, 8)
    assert world.asked == [5, 3]
    room.close()
    assert world.asked == [5, 3, 0]


@pytest.mark.fault("capacity that does not come back")
def test_no_room_for_anybody_is_said_and_after_a_while_it_ends(monkeypatch):
    world, said = World(monkeypatch, 4), []
    room = world.room(patience=120, name="finals", say=said.append)
    assert room(0, 1) == 1
    for world.now in range(10, 200, 10):
        world.set()
        if world.now == 100:
            world.set(4)  # it comes back once, and leaves for good
        if world.now <= 110:
            room(0, 1)
    assert said == [
        "no node has room for finals: waiting, 2 minutes at most",
        "there is room for finals again: going on",
    ]
    assert room(1, 1) == 0  # what runs may be waiting for a node of its own
    for world.now in range(200, 320, 10):
        room(0, 1)
    world.now = 330
    with pytest.raises(ClusterError, match="no node has had room for finals for 2 minutes"):
        room(0, 1)
    assert len(said) == 3


def test_a_job_too_large_is_named_unless_the_cluster_grows():
    nodes = [Node("a", 8, 2, "L4"), Node("b", 8, 4, "L4")]
    with pytest.raises(ClusterError, match=r"8 workers .* 1 GPU each.* 6 GPUs on 2 nodes"):
        jobs_that_fit(nodes, Gang(8, 1, 1))
    with pytest.raises(ClusterError, match="1 GPU of type H100"):
        jobs_that_fit(nodes, Gang(1, 1, 1, "H100"))
    assert jobs_that_fit(nodes, Gang(8, 1, 1), grows=True) == 1
    assert jobs_that_fit(nodes, Gang(2, 1, 1), grows=True) == 3
