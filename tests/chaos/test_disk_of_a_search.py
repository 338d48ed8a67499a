"""The disk of a whole search fills up in calibration, in a final, and for good: real commands."""

import pytest
import yaml
from commands import Command
from disks import small_disk

from pipelines.search.ledger import read_events
from pipelines.search.state import load_state
from pipelines.storage.search_files import Search

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3000)]

SEARCH = {
    "name": "s",
    "full_disk_minutes": 0.75,
    "data": {"path": "digits", "image_size": 32, "loader": "torchvision"},
    "model": {"patch_size": 8, "depth": 2},
    "space": {"widths": [{"width": 32, "heads": 2}]},
    "base": {
        "workers": {"cpus_per_worker": 0.9},
        "train": {"epochs": 60, "batch_size": 32, "lr": 0.003, "warmup_epochs": 0.5},
    },
    "calibrate": {"counts": 3, "images": 64},
    "screen": {"schedules": 12, "generations": 2, "cpus_per_actor": 0.9},
    "finals": {
        "trials": 2,
        "workers": {"cpus_per_worker": 0.9},
        "noise_margin": 1e-6,
        "train": {"epochs": 2, "batch_size": 32, "lr": 0.001, "warmup_epochs": 0.5},
    },
}


def test_it_waits_goes_on_ends_in_order_and_goes_on_again(tmp_path, told):
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    assert Command("prepare", "digits", "digits", cwd=tmp_path).end() == 0
    with small_disk("64m") as disk:
        words = ["search", "search.yaml", "--set", f"storage={disk.folder}/runs"]
        command = Command(*words, cwd=tmp_path)
        try:
            command.wait_for("base models, epochs: ")
            count = len(command.lines)
            disk.fill()
            # The training before its checkpoint, or the driver before it records the last one.
            command.wait_for(f"the disk at {disk.folder} is full: .* missing", start=count)
            disk.clear()
            command.wait_for("base models, epochs: ", start=len(command.lines))
            told("full disk while a model is trained", steps_lost=0, seconds=0)

            command.wait_for("== 2/8")
            disk.fill()
            code = command.end()
            assert code in (0, 1), command.text  # 0: as one that was stopped
        finally:
            command.kill()
        last = [line for _, line in command.lines if "is full" in line or "No space" in line][-1]
        assert "make room" in last or "waiting for room" in last
        assert "type the same command to go on" in command.text
        for word in ("Traceback", "sqlalchemy", "sqlite3.", "Errno"):
            assert word not in command.text, command.text
        done = list(read_events(Search(disk.folder / "runs", "s").ledger))
        assert "base_done" in {event["event"] for event in done}
        disk.clear()
        again = Command(*words, cwd=tmp_path)
        try:
            assert again.end() == 0, again.text
        finally:
            again.kill()
        state = load_state(Search(disk.folder / "runs", "s"))
        assert state.complete
        assert {trial.status for trial in state.trials.values()} <= {"done", "stopped"}
        events = list(read_events(Search(disk.folder / "runs", "s").ledger))
        assert events[: len(done)] == done  # nothing of what was done is lost
        epochs = [report.epoch for report in state.base(32).reports]
        assert epochs == list(range(1, 61))
        told("full disk for longer than the deadline", steps_lost=0)
