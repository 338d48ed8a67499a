from types import SimpleNamespace

import pytest

from pipelines.errors import UserError
from pipelines.train.job_folder import REPORTS_NAME, PathFolder
from pipelines.train.reports import Report
from pipelines.trials.run_trials import unheard_reports


def report(epoch, top1=0.5):
    return Report(epoch=epoch, top1_minival=top1, loss=1.0)


# What a ledger's reports hold, in their order; those of searches begun before are read again.
KEYS = [
    *("epoch", "loss", "lr", "images_per_s", "top1_minival", "loss_minival", "device_seconds"),
    *("top5_minival", "top1_minival_raw", "top5_minival_raw", "loss_minival_raw"),
    *("top1_minival_pooled", "loss_minival_pooled"),
    *("share_data", "share_forward", "share_backward", "share_communication", "share_step"),
    *("skipped_steps", "rollbacks", "micro_batch", "gpu_memory_peak_gib", "gpu_utilisation"),
]


def test_a_report_is_in_the_ledger_as_it_always_was():
    whole = Report.of({key: number for number, key in enumerate(KEYS, 1)})
    assert list(whole.to_json()) == KEYS and Report.of(whole.to_json()) == whole
    assert report(2).to_json() == {"epoch": 2, "loss": 1.0, "top1_minival": 0.5}
    with pytest.raises(ValueError, match="top1_minival"):
        Report.of({"epoch": 1})


def test_reports_are_kept_by_epoch_and_an_epoch_done_again_forgets_what_followed(tmp_path):
    folder = PathFolder(tmp_path)
    assert folder.reports() == []
    for number in (1, 2, 3):
        folder.add_report(report(number))
    folder.add_report(report(2, 0.6))
    assert folder.reports() == [report(1), report(2, 0.6)]
    assert [path.name for path in tmp_path.iterdir()] == [REPORTS_NAME]


def test_what_no_driver_heard_is_told_as_it_would_have_been(tmp_path):
    job = SimpleNamespace(folder=PathFolder(tmp_path))
    assert unheard_reports(job, []) == []
    for number in (1, 2, 3):
        job.folder.add_report(report(number))
    assert unheard_reports(job, [report(1)]) == [report(2), report(3)]
    assert unheard_reports(job, [report(3)]) == []
    assert len(unheard_reports(job, [])) == 3


@pytest.mark.fault("reports with a flipped bit")
def test_reports_that_were_altered_are_refused_and_older_ones_are_read(tmp_path):
    folder, path = PathFolder(tmp_path), tmp_path / REPORTS_NAME
    # As it was before there were checksums; and another program may tell more.
    path.write_text('{"epoch": 1, "top1_minival": 0.5, "loss": 1.0, "more": "x"}\n')
    folder.add_report(report(2))
    right = path.read_bytes()
    assert folder.reports() == [report(1), report(2)]
    refused = 0
    for at in range(len(right)):
        path.write_bytes(right[:at] + bytes([right[at] ^ 4]) + right[at + 1 :])
        try:
            found = folder.reports()
        except UserError as error:
            refused += f"{REPORTS_NAME} line" in str(error) and "damaged: delete" in str(error)
        else:
            assert found == [
                report(1),
                report(2),
            ]  # the checksum's name was altered, and nothing else
    assert refused > 0.8 * len(right)
