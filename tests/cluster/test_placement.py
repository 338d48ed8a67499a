"""The rules of placement against brute force: every way of packing, on real resources."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.packing import place
from cluster.placement import Fit, Gang, Node, accelerators, as_node, fit, slots

CPUS = st.sampled_from([0.5, 0.9, 1.0, 2.0, 3.0])
GPUS = st.sampled_from([0.0, 0.25, 0.3, 0.6, 1.0, 2.0])
NODES = st.lists(
    st.tuples(st.sampled_from([0.9, 2.0, 2.7, 4.0, 6.0]), st.integers(0, 4)), min_size=1, max_size=3
)


class Machine:
    """A node that gives out workers one by one, each from its own devices."""

    def __init__(self, cpus, gpus):
        self.cpus, self.devices = cpus, [1.0] * gpus

    def take(self, gang):
        if self.cpus < gang.cpus - 1e-9:
            return False
        if gang.gpus >= 1:
            whole = [i for i, free in enumerate(self.devices) if free == 1.0]
            if len(whole) < gang.gpus:
                return False
            for i in whole[: int(gang.gpus)]:
                self.devices[i] = 0.0
        elif gang.gpus:
            for i, free in enumerate(self.devices):
                if free >= gang.gpus - 1e-9:
                    self.devices[i] -= gang.gpus
                    break
            else:
                return False
        self.cpus -= gang.cpus
        return True


def workers_that_fit(cpus, gpus, gang):
    machine, count = Machine(cpus, gpus), 0
    while machine.take(gang):
        count += 1
    return count


def splits(free, num_workers):
    """All ways to put a job's workers on the nodes' free places."""
    return [
        way
        for way in product(*(range(min(room, num_workers) + 1) for room in free))
        if sum(way) == num_workers
    ]


def most_jobs(free, num_workers, within=False):
    """The largest number of jobs side by side, by trying everything."""
    ways = splits(free, num_workers)
    if within:
        ways = [way for way in ways if max(way) == num_workers]
    if not ways:
        return 0
    return max(
        1 + most_jobs([f - w for f, w in zip(free, way, strict=True)], num_workers, within)
        for way in ways
    )


@settings(max_examples=150, deadline=None)
@given(NODES, CPUS, GPUS)
def test_slots_are_what_a_node_gives_out(machines, cpus, gpus):
    gang = Gang(1, cpus, gpus)
    for number, (node_cpus, node_gpus) in enumerate(machines):
        node = Node(str(number), node_cpus, node_gpus)
        assert slots(node, gang) == workers_that_fit(node_cpus, node_gpus, gang)


FREE = st.lists(st.integers(0, 4), min_size=1, max_size=3)


@settings(max_examples=80, deadline=None)
@given(FREE, st.integers(1, 5))
def test_as_many_jobs_fit_as_by_trying_everything(free, num_workers):
    nodes = [Node(str(i), room) for i, room in enumerate(free)]
    found = fit(nodes, Gang(num_workers, 1.0))
    assert found.jobs == most_jobs(free, num_workers)
    within = most_jobs(free, num_workers, within=True)
    assert (found.strategy == "STRICT_PACK") == (within == found.jobs > 0)


@settings(max_examples=120, deadline=None)
@given(FREE, st.integers(1, 6))
def test_a_job_goes_to_as_few_nodes_as_possible(free, num_workers):
    placed = place(free, num_workers)
    ways = splits(free, num_workers)
    if not ways:
        assert placed is None
        return
    assert sum(placed.values()) == num_workers
    assert all(0 < count <= free[index] for index, count in placed.items())
    assert len(placed) == min(sum(w > 0 for w in way) for way in ways)


@settings(max_examples=120, deadline=None)
@given(FREE, st.integers(1, 5), st.data())
def test_the_next_job_always_finds_room_whoever_chose_the_nodes(free, num_workers, data):
    """Starts and ends in any order; where workers go is chosen by an adversary."""
    found = fit([Node(str(i), room) for i, room in enumerate(free)], Gang(num_workers, 1.0))
    running = []
    for _ in range(12):
        if len(running) < found.jobs and data.draw(st.booleans()):
            ways = splits(free, num_workers)
            if found.strategy == "STRICT_PACK":
                ways = [way for way in ways if max(way) == num_workers]
            assert ways, "a job would wait for another"
            way = data.draw(st.sampled_from(ways))
            free = [f - w for f, w in zip(free, way, strict=True)]
            running.append(way)
        elif running:
            way = running.pop(data.draw(st.integers(0, len(running) - 1)))
            free = [f + w for f, w in zip(free, way, strict=True)]


def test_the_cases_worth_knowing():
    box = [Node(str(i), 64.0, 8.0, "H100") for i in range(4)]
    # One trial a node where it fills it; four of two where it fills a quarter.
    assert fit(box, Gang(8, 4.0, 1.0)) == Fit(4, "STRICT_PACK")
    assert fit(box, Gang(2, 4.0, 1.0)) == Fit(16, "STRICT_PACK")
    # Two whole nodes each.
    assert fit(box, Gang(16, 4.0, 1.0)) == Fit(2, "PACK")
    # Twelve of three workers lie within nodes... ten do, and 32 GPUs hold ten: two on each node.
    assert fit(box, Gang(3, 4.0, 1.0)) == Fit(10, "PACK")
    # The sum over the cluster would say two; no node holds a worker of 3 CPUs twice over.
    assert fit([Node("a", 4.0), Node("b", 5.0)], Gang(1, 3.0)).jobs == 2
    assert fit([Node("a", 4.0), Node("b", 5.0)], Gang(3, 3.0)).jobs == 0
    # A device holds one worker of 0.6 GPU, though eight devices make 13 times 0.6.
    assert fit([Node("a", 99.0, 8.0)], Gang(1, 1.0, 0.6)).jobs == 8
    # Tenths are exact.
    assert fit([Node("a", 0.3)], Gang(1, 0.1)).jobs == 3


def test_a_declared_type_is_the_only_one_used():
    nodes = [Node("a", 8, 4, "A100"), Node("b", 8, 4, "H100"), Node("c", 8)]
    assert fit(nodes, Gang(4, 1, 1)).jobs == 2
    assert fit(nodes, Gang(4, 1, 1, "H100")) == Fit(1, "STRICT_PACK")
    assert fit(nodes, Gang(1, 1, 1, "L4")).jobs == 0
    assert accelerators(nodes) == ["A100", "H100"]
    assert Gang(4, 1, 1, "H100").bundle() == {"CPU": 1, "GPU": 1, "accelerator_type:H100": 0.001}


def test_a_node_is_read_from_rays_description():
    record = {
        "NodeID": "ab",
        "Resources": {"CPU": 8.0, "GPU": 2.0, "accelerator_type:L4": 1.0, "memory": 1e9},
    }
    assert as_node(record) == Node("ab", 8.0, 2.0, "L4")
    assert as_node({"NodeID": "cd", "Resources": {}}) == Node("cd", 0.0)


@pytest.mark.parametrize("numbers", [(0, 1.0, 0.0), (1, -1.0, 0.0), (1, 0.0, 0.0), (1, 1.0, 1.5)])
def test_senseless_jobs_are_refused(numbers):
    with pytest.raises(ValueError, match=r"cannot have|without limit"):
        Gang(*numbers)
