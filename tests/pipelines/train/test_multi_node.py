"""The same job on 2 hosts × 2 workers under Ray, and what is killed goes on by itself.

Slow: three Ray hosts and four workers share this machine's cores, and each job starts twice.
"""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from gang import run_gang, train_as_torchrun_does
from hosts import PORT, address, ray_hosts, why_not

from pipelines.data.prepare import prepare

TOKENPOOL = str(Path(sys.executable).parent / "tokenpool")
EPOCHS = 6
WHY_NOT = why_not()


def config(folder, name, workers=4, steps=None):
    values = {
        "name": name,
        "seed": 3,
        "storage": str(folder / "runs"),
        "data": {"path": str(folder / "digits"), "image_size": 32},
        "model": {"patch_size": 8, "depth": 2},
        "width": {"width": 32, "heads": 2},
        "schedule": [8, 4],
        "workers": {
            "num_workers": workers, "cpus_per_worker": 0.9,
            "max_failures": 0 if name == "drained" else 3,
        },
        "train": {
            "epochs": EPOCHS, "batch_size": 16, "lr": 1e-3, "warmup_epochs": 1, "ema_decay": 0.9,
            "drop_path": 0.1, "keep_checkpoints": 100, "checkpoint_every_steps": steps,
        },
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hosts")
    prepare("digits", path / "digits")
    return path


@pytest.fixture(scope="module")
def straight(folder):
    """Loss and top-1 of each epoch where nothing was killed: four workers here, without Ray."""
    path = config(folder, "straight")
    assert run_gang(4, train_as_torchrun_does, path) == [0] * 4
    reports = folder / "runs" / "trains" / "straight" / "reports.jsonl"
    rows = [json.loads(line) for line in reports.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    return {row["epoch"]: (row["loss"], row["top1_minival"]) for row in rows}


@pytest.fixture(scope="module")
def hosts():
    with ray_hosts(2, cpus=2) as made:
        yield made


class Run:
    """`tokenpool train` typed on the head."""

    def __init__(self, hosts, folder, name, **settings):
        self.hosts, self.name = hosts, name
        self.directory = folder / "runs" / "trains" / name
        self.config = config(folder, name, **settings)
        self.log = folder / f"{name}.log"
        self.type()

    def type(self):
        with self.log.open("a") as log:
            self.process = self.hosts.exec(
                0, TOKENPOOL, "train", str(self.config), "--address", f"{address(0)}:{PORT}",
                stdout=log, stderr=log,
            )  # fmt: skip

    def checkpoints(self):
        """When each was written."""
        return {state.parent.name: state.stat().st_mtime_ns for state in self._states()}

    def _states(self):
        return sorted(self.directory.glob("epoch-*/state.json"))

    def wait_for_epochs(self, count):
        """The checkpoints of the epochs that Ray has committed and the driver has heard of."""
        deadline = time.monotonic() + 120
        while (done := self.log.read_text().count(f"/{EPOCHS} loss")) < count:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.05)
        names = [f"epoch-{epoch:04d}" for epoch in range(1, done + 1)]
        return {name: self.checkpoints()[name] for name in names}

    def wait_for_line(self, pattern):
        deadline = time.monotonic() + 120
        while (found := re.search(f".*{pattern}.*", self.log.read_text())) is None:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.05)
        return found[0]

    def is_under_way(self):
        done = [name for name in self.checkpoints() if "-step-" not in name]
        return self.process.poll() is None and len(done) < EPOCHS

    def workers(self, number):
        """Processes of this machine that train, on one host."""
        pids = []
        for pid in self.hosts.pids(number):
            try:
                line = " ".join(psutil.Process(pid).cmdline())
            except psutil.NoSuchProcess:
                continue
            if "RayTrainWorker" in line:
                pids.append(pid)
        return pids

    def finish(self):
        code = self.process.wait(200)
        assert code == 0, self.log.read_text()[-3000:]

    def result(self):
        states = [json.loads(state.read_text()) for state in self._states()]
        metrics = [state["metrics"] for state in states]
        return {row["epoch"]: (row["loss"], row["top1_minival"]) for row in metrics}


def goes_on(run, before, straight):
    """It ended as a straight run does, to the bit, and did nothing again that had been saved."""
    run.finish()
    assert run.result() == straight
    after = run.checkpoints()
    assert {name: after[name] for name in before} == before
    assert len(after) == EPOCHS


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
class TestTwoHosts:
    @pytest.fixture(autouse=True)
    def no_room_is_held_after_it(self, hosts):
        """What a job had reserved on the cluster is given back."""
        yield
        deadline = time.monotonic() + 90
        while (held := hosts.held()) != []:
            assert time.monotonic() < deadline, f"placement groups are left: {held}"
            time.sleep(1)

    @pytest.mark.fault("worker of two hosts killed")
    def test_a_killed_worker(self, hosts, folder, straight):
        run = Run(hosts, folder, "worker")
        before = run.wait_for_epochs(2)
        assert [len(run.workers(number)) for number in (0, 1, 2)] == [0, 2, 2]
        assert run.is_under_way()
        os.kill(run.workers(2)[0], signal.SIGKILL)
        goes_on(run, before, straight)

    @pytest.mark.fault("host killed")
    def test_a_killed_host(self, hosts, folder, straight):
        run = Run(hosts, folder, "host")
        before = run.wait_for_epochs(2)
        assert run.is_under_way()
        hosts.kill(2)
        hosts.start_ray(2)
        goes_on(run, before, straight)

    @pytest.mark.fault("head killed with everything")
    def test_a_killed_head(self, hosts, folder, straight):
        """Driver, Ray's head and all other hosts: the same command, typed on a new cluster."""
        run = Run(hosts, folder, "head")
        before = run.wait_for_epochs(2)
        assert run.is_under_way()
        for number in (0, 1, 2):
            hosts.kill(number)
        assert run.process.wait(60) != 0 and not run.workers(1) + run.workers(2)
        for number in (0, 1, 2):
            hosts.start_ray(number)
        run.type()
        goes_on(run, before, straight)

    @pytest.mark.fault("host drained with notice (preemption)")
    def test_a_host_that_is_taken_away_with_notice(self, hosts, folder, straight, told):
        drain = hosts.drain(2, seconds=60)
        run = Run(hosts, folder, "drained")
        run.wait_for_epochs(2)
        assert run.is_under_way()
        begun = time.monotonic()
        drain()
        line = run.wait_for_line("drained: .* is to be taken away")
        noticed = time.monotonic() - begun
        (left,) = run.directory.glob("epoch-*-step-*")  # within an epoch, as no other is due
        assert noticed < 50 and "goes on elsewhere, from where it was" in line
        while run.workers(1):
            assert time.monotonic() - begun < 50, "they did not leave"
            time.sleep(0.1)
        hosts.kill(2)
        before = run.checkpoints()
        hosts.start_ray(2)
        run.finish()
        # As if nothing had been, to the bit, with none of the failures that it may have: none.
        assert run.result() == straight and "restart" not in run.log.read_text()
        assert left.name in before and len(run.checkpoints()) == EPOCHS + 1
        told("host drained with notice (preemption)", 0, steps_lost=0, seconds=noticed)

    @pytest.mark.fault("job killed with all its workers")
    def test_a_killed_job(self, hosts, folder, straight):
        run = Run(hosts, folder, "job")
        before = run.wait_for_epochs(2)
        assert run.is_under_way()
        for child in psutil.Process(run.process.pid).children(recursive=True):
            child.kill()
        run.process.kill()
        run.process.wait()
        run.type()
        goes_on(run, before, straight)
