import pytest
import torch.distributed as dist

from pipelines.train.checkpoint import (
    JobProgress,
    checkpoint_folders,
    folder_name,
    seal,
    write_progress,
)
from pipelines.train.job_folder import PathFolder
from pipelines.train.reporter import FolderReporter
from pipelines.train.reports import Report
from pipelines.trials.ray_reporter import known_to_ray


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def reported(epoch, top1=0.5):
    return Report(epoch=epoch, top1_minival=top1)


def writer(epoch, step=0, top1=0.5):
    def write(folder):
        last = reported(epoch, top1) if epoch else None
        (folder / "weights").write_text(f"{epoch}/{step}")
        write_progress(folder, JobProgress(epoch, 1, 0.0, last, step=step))
        seal(folder, 0)

    return write


def test_names_sort_as_time_goes():
    names = [folder_name(0, 3), folder_name(1), folder_name(1, 2), folder_name(1, 10)]
    names += [folder_name(2), folder_name(2) + "-r3", folder_name(2, 1), folder_name(10)]
    assert names == sorted(names)


def test_the_newest_few_and_the_best_stay(alone, tmp_path):
    reporter = FolderReporter(PathFolder(tmp_path))
    scores = [0.3, 0.9, 0.5, 0.9, 0.2]
    for epoch, top1 in enumerate(scores, 1):
        reporter.save(epoch - 1, 4, writer(epoch - 1, 4), 3)
        reporter.report(reported(epoch, top1), writer(epoch, top1=top1), 3)
    kept = [folder.name for folder in checkpoint_folders(tmp_path)]
    assert kept == ["epoch-0005", "epoch-0004-step-000004", "epoch-0004"]
    best = tmp_path / "best"
    assert (
        PathFolder(tmp_path).score("best") == 0.9 and (best / "weights").read_text() == "2/0"
    )  # the first of two
    assert reporter.newest_checkpoint() == tmp_path / "epoch-0005"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_checkpoint_within_an_epoch_is_the_newest_until_the_epochs_own(alone, tmp_path):
    reporter = FolderReporter(PathFolder(tmp_path))
    reporter.report(reported(1, 0.1), writer(1, top1=0.1), 2)
    reporter.save(1, 7, writer(1, 7), 2)
    reporter.save(1, 14, writer(1, 14), 2)
    newest = tmp_path / "epoch-0001-step-000014"
    assert reporter.newest_checkpoint() == newest
    (newest / "weights").write_text("torn")
    assert reporter.newest_checkpoint() == tmp_path / "epoch-0001-step-000007"
    assert (tmp_path / "best" / "weights").read_text() == "1/0"


def test_an_epoch_that_is_done_again_replaces_its_line(alone, tmp_path):
    reporter = FolderReporter(PathFolder(tmp_path))
    for epoch, top1 in ((1, 0.3), (2, 0.4), (2, 0.5)):
        reporter.report(reported(epoch, top1), writer(epoch, top1=top1), 2)
    assert PathFolder(tmp_path).reports() == [reported(1, 0.3), reported(2, 0.5)]


def test_a_best_that_was_being_replaced_is_found_again(alone, tmp_path):
    reporter = FolderReporter(PathFolder(tmp_path))
    reporter.report(reported(1, 0.8), writer(1, top1=0.8), 2)
    (tmp_path / "best").rename(tmp_path / ".best-old")  # where a kill would leave it
    reporter.report(reported(2, 0.4), writer(2, top1=0.4), 2)
    assert PathFolder(tmp_path).score("best") == 0.8


def test_under_ray_an_epoch_whose_report_was_lost_is_done_again():
    names = ["epoch-0001", "epoch-0001-step-000005", "epoch-0002", "epoch-0002-step-000005"]

    def known(committed):
        return known_to_ray(list(reversed(names)), committed)

    assert known("epoch-0001") == ["epoch-0001-step-000005", "epoch-0001"]
    assert known("epoch-0002")[0] == "epoch-0002-step-000005"
    assert known(None) == []
