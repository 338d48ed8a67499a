"""The power goes at each system call of a checkpoint's commit: the old state is there, or the new.

Real commits, real system calls; what a disk may hold after each of them says `power.py`.
"""

import asyncio
import json
import os
from types import SimpleNamespace

import pytest
import ray.train
import torch.distributed as dist
from power import Recorder
from ray.train import CheckpointConfig

from cluster.ray_private import CheckpointManager, StorageContext
from pipelines.train.checkpoint import (
    BEST_NAME,
    JobProgress,
    damage,
    read_progress,
    seal,
    write_progress,
)
from pipelines.train.job_folder import PathFolder
from pipelines.train.reporter import FolderReporter
from pipelines.train.reports import Report
from pipelines.trials.ray_record import mend_record
from pipelines.trials.ray_reporter import RayReporter

# (epochs that are done, steps after them): a job's commits, and what each epoch scores.
COMMITS = [(0, 10), (1, 0), (1, 10), (2, 0), (2, 10), (3, 0), (4, 0)]
SCORES = [0.0, 0.5, 0.7, 0.6, 0.8]
FIRST = 1  # commits before the first that the power may go in
# Checkpoints that are kept; and whether the power goes at each system call or at some.
CASES = pytest.mark.parametrize(
    ("keep", "every"),
    [(2, 11), *(pytest.param(keep, 1, marks=pytest.mark.chaos) for keep in (1, 2))],
)


@pytest.fixture(scope="module", autouse=True)
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def quick(monkeypatch):
    """From when it is called on nothing is flushed any more, as nobody will cut the power."""
    return lambda: monkeypatch.setattr(os, "fsync", lambda handle: None)


def report_of(epoch):
    return Report(epoch=epoch, top1_minival=SCORES[epoch])


def part(epoch, step):
    def write(folder):
        (folder / "engine").mkdir()
        (folder / "engine" / "weights.pt").write_bytes(f"{epoch} {step} ".encode() * 50)
        (folder / "model").mkdir()
        (folder / "model" / "model.safetensors").write_bytes(f"{epoch} {step} ".encode() * 70)
        write_progress(
            folder, JobProgress(epoch, 1, 1.0, report_of(epoch) if epoch else None, step)
        )
        seal(folder, 0)

    return write


def commit(reporter, epoch, step, keep):
    if step:
        reporter.save(epoch, step, part(epoch, step), keep)
    else:
        reporter.report(report_of(epoch), part(epoch, step), keep)


def reached(folder):
    """How far a checkpoint is, by its state and by its weights."""
    if folder is None:
        return (0, 0)
    progress = read_progress(folder)
    weights = (folder / "engine" / "weights.pt").read_text().split()[:2]
    assert weights == [str(progress.epoch), str(progress.step)]
    return progress.epoch, progress.step


def check(there, number, keep):
    """The old state or the new; and the job goes on from it to the end that it would have had."""
    folder = PathFolder(there)
    reporter = FolderReporter(folder)
    before, after = COMMITS[number - 1], COMMITS[number]
    found = reached(reporter.newest_checkpoint())
    assert found in (before, after)
    heard = [report.epoch for report in folder.reports()]
    assert heard in (list(range(1, found[0] + 1)), list(range(1, found[0] + 2)))
    for epoch, step in COMMITS[COMMITS.index(found) + 1 :]:
        commit(reporter, epoch, step, keep)
    assert reached(reporter.newest_checkpoint()) == COMMITS[-1]
    assert folder.reports() == [report_of(epoch) for epoch in range(1, len(SCORES))]
    assert folder.score(BEST_NAME) == max(SCORES)
    assert damage(there / BEST_NAME) is None


def tear(reporter, recorder, again, quick, told, keep, every, check):
    """Commits, and then checks each state that the power may leave of them."""
    for number, (epoch, step) in enumerate(COMMITS[:-1]):
        recorder.label = str(number)
        with recorder.at_work():
            commit(reporter, epoch, step, keep)
    quick()
    states = 0
    for moment in recorder.moments[::every]:
        number = int(moment.label)
        for what, there in moment.states(again) if number >= FIRST else ():
            states += 1
            try:
                check(there, number, keep)
            except Exception as error:
                raise AssertionError(what) from error
    assert states > 100 / every  # there was something to tear
    told("power cut: checkpoint torn at every system call of its commit", states - 1)


@CASES
@pytest.mark.fault("power cut: checkpoint torn at every system call of its commit")
def test_a_commit_in_a_folder(tmp_path, told, quick, keep, every):
    folder = tmp_path / "job"
    recorder = Recorder(folder, tmp_path / "moments")
    reporter = FolderReporter(PathFolder(folder))
    tear(reporter, recorder, tmp_path / "again", quick, told, keep, every, check)
    assert len(recorder.moments) > 100


class RayInOneProcess:
    """What of Ray Train a reporter sees: its own storage and its own record of checkpoints."""

    def __init__(self, folder, keep, look=lambda call: None):
        self.storage = StorageContext(folder.parent, folder.name)
        self.manager = CheckpointManager(CheckpointConfig(num_to_keep=keep), self.storage)
        self._look = look

    def get_context(self):
        return SimpleNamespace(get_storage=lambda: self.storage)

    def get_checkpoint(self):
        latest = self.manager.latest_checkpoint_result
        return latest.checkpoint if latest else None

    def report(self, metrics, checkpoint, checkpoint_dir_name, checkpoint_upload_fn):
        kept = checkpoint_upload_fn(checkpoint, checkpoint_dir_name)
        self._look("Ray's record")
        report = SimpleNamespace(checkpoint=kept, metrics=metrics, validation=None)

        async def register():
            self.manager.register_checkpoint(report)

        asyncio.run(register())

    def put_in(self, monkeypatch):
        for name in ("get_context", "get_checkpoint", "report"):
            monkeypatch.setattr(ray.train, name, getattr(self, name))


@CASES
@pytest.mark.fault("power cut: checkpoint torn at every system call of its commit")
def test_a_commit_through_ray(tmp_path, told, quick, monkeypatch, keep, every):
    def check(there, number, keep):
        mend_record(there, heard=True)
        RayInOneProcess(there, keep).put_in(monkeypatch)
        reporter = RayReporter(PathFolder(there))
        found = reached(reporter.newest_checkpoint())
        assert found in (COMMITS[number - 1], COMMITS[number])
        for epoch, step in COMMITS[COMMITS.index(found) + 1 :]:
            commit(reporter, epoch, step, keep)
        assert reached(reporter.newest_checkpoint()) == COMMITS[-1]
        assert PathFolder(there).score(BEST_NAME) == max(SCORES)
        assert damage(there / BEST_NAME) is None
        record = json.loads((there / "checkpoint_manager_snapshot.json").read_text())
        names = [row["checkpoint_dir_name"] for row in record["checkpoint_results"]]
        assert len(names) == len(set(names)) == min(keep, len(SCORES) - 1)
        assert all(damage(there / name) is None for name in names)

    folder = tmp_path / "job"
    folder.mkdir()
    recorder = Recorder(folder, tmp_path / "moments")
    RayInOneProcess(folder, keep, recorder.look).put_in(monkeypatch)
    reporter = RayReporter(PathFolder(folder))
    tear(reporter, recorder, tmp_path / "again" / "job", quick, told, keep, every, check)
