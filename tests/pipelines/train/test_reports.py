from types import SimpleNamespace

import pytest

from pipelines.errors import UserError
from pipelines.train.reports import REPORTS_NAME, add_report, kept_reports
from pipelines.trials.run_trials import unheard_reports


def report(epoch, top1=0.5):
    return {"epoch": epoch, "top1_minival": top1, "loss": 1.0, "internal": "x"}


def test_reports_are_kept_by_epoch_and_an_epoch_done_again_forgets_what_followed(tmp_path):
    assert kept_reports(tmp_path) == []
    for number in (1, 2, 3):
        add_report(tmp_path, report(number))
    add_report(tmp_path, report(2, 0.6))
    assert [(r["epoch"], r["top1_minival"]) for r in kept_reports(tmp_path)] == [(1, 0.5), (2, 0.6)]
    assert [path.name for path in tmp_path.iterdir()] == [REPORTS_NAME]


def test_what_no_driver_heard_is_told_as_it_would_have_been(tmp_path):
    job = SimpleNamespace(directory=tmp_path, address=None)
    assert unheard_reports(job, []) == []
    for number in (1, 2, 3):
        add_report(tmp_path, report(number))
    told = {"epoch": 2, "top1_minival": 0.5, "loss": 1.0}
    assert unheard_reports(job, [{"epoch": 1}]) == [told, told | {"epoch": 3}]
    assert unheard_reports(job, [{"epoch": 3}]) == []
    assert len(unheard_reports(job, [])) == 3


@pytest.mark.fault("reports with a flipped bit")
def test_reports_that_were_altered_are_refused_and_older_ones_are_read(tmp_path):
    path = tmp_path / REPORTS_NAME
    path.write_text('{"epoch": 1}\n')  # as it was before there were checksums
    add_report(tmp_path, report(2))
    right = path.read_bytes()
    assert [r["epoch"] for r in kept_reports(tmp_path)] == [1, 2]
    values = [report["epoch"] for report in kept_reports(tmp_path)]
    refused = 0
    for at in range(len(right)):
        path.write_bytes(right[:at] + bytes([right[at] ^ 4]) + right[at + 1 :])
        try:
            found = [report["epoch"] for report in kept_reports(tmp_path)]
        except UserError as error:
            refused += f"{REPORTS_NAME} line" in str(error) and "damaged: delete" in str(error)
        else:
            assert found == values  # the checksum's name was altered, and nothing else
    assert refused > 0.8 * len(right)
