"""A job's reporter on an object store, with Ray's own storage and checks, in one process."""

from types import SimpleNamespace

import pytest
import ray.train
import torch.distributed as dist
from ray.train.v2._internal.execution.context import is_managed_checkpoint
from ray.train.v2._internal.execution.storage import StorageContext

from pipelines.errors import UserError
from pipelines.train.checkpoint import JobProgress, read_progress, seal, write_progress
from pipelines.train.job_folder import StoreFolder
from pipelines.train.reports import Report
from pipelines.trials.ray_reporter import RayReporter


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def committed(store, monkeypatch):
    """What Ray has stored, by its checks."""
    found = []
    storage = StorageContext(store.path, "job", storage_filesystem=store.filesystem)

    def report(metrics, checkpoint, checkpoint_dir_name, checkpoint_upload_fn):
        kept = checkpoint_upload_fn(checkpoint, checkpoint_dir_name)
        assert is_managed_checkpoint(storage, kept)
        found.append(kept)

    context = SimpleNamespace(get_storage=lambda: storage)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: found[-1] if found else None)
    monkeypatch.setattr(ray.train, "report", report)
    return found


def reported(epoch):
    return Report(epoch=epoch, top1_minival=0.5 + epoch / 10)


def part(epoch, step=0):
    def write(folder):
        (folder / "weights").write_text(f"{epoch} {step}")
        write_progress(folder, JobProgress(epoch, 1, 1.0, reported(epoch), step))
        seal(folder, 0)

    return write


@pytest.mark.fault("worker cut off and replaced: it is fenced (object store)")
def test_it_goes_on_from_what_ray_has_and_who_was_replaced_writes_no_more(
    process_group, store, committed
):
    old = RayReporter(StoreFolder(store.child("job")))
    assert old.newest_checkpoint() is None
    old.report(reported(1), part(1), 2)
    old.save(1, 5, part(1, 5), 2)
    new = RayReporter(StoreFolder(store.child("job")))
    folder = new.newest_checkpoint()
    assert (read_progress(folder).epoch, read_progress(folder).step) == (1, 5)
    assert (folder / "weights").read_text() == "1 5"
    for late in (
        lambda: old.report(reported(2), part(2), 2),
        lambda: old.save(1, 9, part(1, 9), 2),
    ):
        with pytest.raises(UserError, match="started anew elsewhere"):
            late()
    assert [checkpoint.path.rpartition("/")[2] for checkpoint in committed] == ["epoch-0001"]
    new.report(reported(2), part(2), 2)
    assert read_progress(new.newest_checkpoint()).epoch == 2
    folder = StoreFolder(store.child("job"))
    assert folder.reports() == [reported(1), reported(2)]
    assert folder.bests() == ["best-epoch-0002"] and folder.score("best-epoch-0002") == 0.7
