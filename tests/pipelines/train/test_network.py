"""A host that is cut off under a running job, and a network that delays and loses.

Slow: three Ray hosts and two workers share this machine's cores, and each job starts twice.
"""

import time

import psutil
import pytest
import test_multi_node
from gang import run_gang, train_as_torchrun_does
from hosts import ray_hosts, why_not
from test_multi_node import Run

from pipelines.data.prepare import prepare
from pipelines.train.checkpoint import damage
from pipelines.train.job_folder import PathFolder

EPOCHS = test_multi_node.EPOCHS
WHY_NOT = why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("network")
    prepare("digits", path / "digits")
    return path


def curve(directory):
    reports = PathFolder(directory).reports()
    return {report.epoch: (report.loss, report.top1_minival) for report in reports}


@pytest.fixture(scope="module")
def straight(folder):
    path = test_multi_node.config(folder, "straight", workers=2, steps=5)
    assert run_gang(2, train_as_torchrun_does, path) == [0] * 2
    return curve(folder / "runs" / "trains" / "straight")


@pytest.fixture(scope="module")
def hosts():
    with ray_hosts(2, cpus=2) as made:
        yield made


def ends_as(run, straight):
    run.finish()
    assert curve(run.directory) == straight
    assert list(straight) == list(range(1, EPOCHS + 1))
    assert {name: damage(run.directory / name) for name in run.checkpoints()} == dict.fromkeys(
        run.checkpoints()
    )


@pytest.mark.fault("network that delays and loses")
def test_a_network_that_delays_and_loses(hosts, folder, straight, told):
    run = Run(hosts, folder, "lossy", workers=2, steps=5)
    run.wait_for_epochs(1)
    (number,) = [number for number in (1, 2) if run.workers(number)]
    netem, cuts = hosts.disturb(number), 0
    while run.process.poll() is None and len(curve(run.directory)) < EPOCHS:
        hosts.cut(number)  # what is sent meanwhile is lost, and sent again
        time.sleep(0.4)
        hosts.join(number)
        cuts += 1
        time.sleep(1.0)
    ends_as(run, straight)
    assert cuts >= 2 and "restart" not in run.log.read_text()
    told("network that delays and loses", cuts - 1)
    if netem:
        told("network with netem's delay and loss")


@pytest.mark.fault("network cut between two hosts: the cut-off side is fenced")
def test_a_host_that_is_cut_off(hosts, folder, straight, told):
    """The job goes on at the other host by itself, while what it was at the first still runs."""
    run = Run(hosts, folder, "cut", workers=2, steps=5)
    run.wait_for_epochs(2)
    (number,) = [number for number in (1, 2) if run.workers(number)]
    assert run.is_under_way()
    old = run.workers(number)
    begun = time.monotonic()
    hosts.cut(number)
    while not run.workers(3 - number):
        assert run.process.poll() is None and time.monotonic() - begun < 200, run.log.read_text()
        time.sleep(0.05)
    # Both are there: two that could write for one trial.
    assert [pid for pid in old if psutil.pid_exists(pid)] == old
    run.wait_for_line("restart 1 of 3")
    seconds = time.monotonic() - begun
    hosts.join(number)
    ends_as(run, straight)
    assert run.log.read_text().count("restart") == 1
    deadline = time.monotonic() + 90
    while [pid for pid in old if psutil.pid_exists(pid)]:
        assert time.monotonic() < deadline, "the cut-off side goes on"
        time.sleep(0.5)
    told(
        "network cut between two hosts: the cut-off side is fenced",
        0, seconds=seconds,
    )  # fmt: skip
