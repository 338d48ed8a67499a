import pytest
import torch.distributed as dist

from pipelines.errors import UserError
from pipelines.train.job_folder import PathFolder
from pipelines.train.reporter import FolderReporter
from pipelines.train.reports import Report


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def report(epoch):
    return Report(epoch=epoch, top1_minival=0.5)


def write(text):
    return lambda folder: (folder / "weights").write_text(text)


@pytest.mark.fault("worker cut off and replaced: it is fenced")
def test_a_writer_that_was_replaced_writes_no_more(tmp_path, process_group):
    old, new = FolderReporter(PathFolder(tmp_path)), FolderReporter(PathFolder(tmp_path))
    old.newest_checkpoint()
    old.report(report(1), write("old"), 2)
    new.newest_checkpoint()
    new.report(report(1), write("new"), 2)
    new.save(1, 5, write("new"), 2)
    for late in (
        lambda: old.report(report(1), write("old"), 2),
        lambda: old.save(1, 5, write("old"), 2),
    ):
        with pytest.raises(UserError, match="started anew elsewhere"):
            late()
        old.newest_checkpoint()  # as when it goes back to its weights: it takes nothing back
    assert [(tmp_path / name / "weights").read_text() for name in ("epoch-0001",)] == ["new"]
    assert (tmp_path / "epoch-0001-step-000005" / "weights").read_text() == "new"
    assert PathFolder(tmp_path).reports() == [report(1)]
    assert not list(tmp_path.glob(".writing-*"))
    new.report(report(2), write("new"), 2)
