"""`tokenpool status`: what it says of searches that are over, at work, or left behind."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import ledgers
import pytest
import typer
import typer_runs

from pipelines.commands.status_command import status as status_command
from pipelines.errors import UserError
from pipelines.results.status import duration, sparkline
from pipelines.search.driver import driver_runs
from pipelines.search.halt import request_stop
from pipelines.search.ledger import Ledger
from pipelines.storage.search_files import Search
from pipelines.trials.last_signs import LastSign, write_last_signs


@pytest.fixture
def run(storage: Path) -> Callable[..., str]:
    app = typer.Typer()
    app.command("status")(status_command)
    app.callback()(lambda: None)
    return lambda *words: typer_runs.run(app, "status", *words, "--storage", storage).output


def half_way(storage: Path) -> Search:
    rows = ledgers.events("half", complete=False)
    at = next(i for i, row in enumerate(rows) if row.get("trial_id") == "t002" and "report" in row)
    rows = rows[: at + 1]
    late = time.time() - rows[-1]["time"] - 600
    rows = [{**row, "time": row["time"] + late} for row in rows]
    return ledgers.write_ledger(storage, "half", rows)


def test_a_finished_search(run: Callable[..., str]) -> None:
    text = run("digits")
    assert "digits: complete" in text
    assert "7 done, 1 stopped, 1 failed; 2 schedules screened" in text
    assert "front: 6 models, knee t003; hypervolume 0.7597" in text
    found = json.loads(run("digits", "--json"))
    assert (found["state"], found["front"], found["models"]["done"]) == ("complete", 6, 7)


def test_at_work_and_left_behind(run: Callable[..., str], storage: Path) -> None:
    search = half_way(storage)
    assert "half: interrupted 10 min ago: type the same" in run("half")
    with Ledger(search):
        text = run("half")
        assert "half: running, last event 10 min ago" in text
        assert "t002: epoch 1 of 3, top-1 on minival 88.00 %" in text
        assert "✓ base" in text
        assert "· finals" in text
    both = json.loads(run("--json"))
    assert [(one["name"], one["state"]) for one in both] == [
        ("digits", "complete"),
        ("half", "interrupted"),
    ]
    # Watching what is not at work ends at once.
    assert "interrupted" in run("half", "--watch")


def test_stages_trials_rungs_growth_and_budget(run: Callable[..., str], storage: Path) -> None:
    rows = ledgers.events("half", complete=False)
    rows[0]["config"]["finals"] |= {"grace_epochs": 1, "reduction_factor": 2.0}
    now = time.time()
    began = {
        "event": "began",
        "time": rows[0]["time"],
        "budget": {"device_hours": 0.5, "deadline": "2h", "trials": 9},
    }
    rows.insert(1, began)
    rows.append({"event": "spent", "stage": "screen", "device_seconds": 100.0})
    for number, row in enumerate(rows):
        row["time"] = now - 600 + number
    search = ledgers.write_ledger(storage, "half", rows)
    found = json.loads(run("half", "--json"))
    # By hand: six trials reported, five of them to the end, t005 was stopped after one epoch.
    assert found["rungs"] == [{"epoch": 1, "reached": 6, "stopped": 1}]
    # Two bases at 20 s, five trials at 60 s, one at 20 s.
    assert found["stage_device_seconds"] == {"base": 40.0, "screen": 100.0, "finals": 320.0}
    assert found["device_seconds"] == 460.0
    volumes = [volume for _, volume in found["growth"]]
    assert len(volumes) == 7 and volumes == sorted(volumes)
    assert volumes[-1] == pytest.approx(found["hypervolume"], abs=1e-6)
    left = found["budget_left"]
    assert left["device_hours"] == pytest.approx(0.5 - 460 / 3600, abs=1e-3)
    assert left["trials"] == 2  # seven were begun, t007 failed
    assert left["seconds"] == pytest.approx(7200 - (len(rows) - 2), abs=0.1)
    with Ledger(search):
        text = run("half")
        assert "rung: epoch 1: 6 reached, 1 stopped there" in text
        assert "device-seconds: base 40, screen 100, finals 320" in text
        assert "█" in text.split("hypervolume against device-seconds: 0 ")[1]
        assert "device-hours, 1.8 h until the deadline (2h), 2 of 9 trials" in text
        request_stop(search)
        assert "asked to stop" in run("half")
    ended = {"event": "ended", "why": "stop", "reason": "stopped by a@b", "time": now}
    ledgers.write_ledger(storage, "half", [*rows, ended])
    assert "half: ended" in run("half") and "stopped by a@b: type the same" in run("half")


def test_a_search_that_cannot_be_read_hides_none_of_the_others(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ledgers.events("another")
    rows[0]["config"]["space"] = {}
    ledgers.write_ledger(storage, "another", rows)
    with pytest.raises(UserError, match=r"search another was begun by a version .* too different"):
        status_command(None, False, False, str(storage))
    assert "digits: complete" in capsys.readouterr().out
    with pytest.raises(UserError, match="search another was begun by a version"):
        status_command("another", False, False, str(storage))


def test_a_sparkline_by_hand() -> None:
    assert sparkline([[5, 0.5], [10, 1.0]], width=4) == "0  ▅▅█ 1.0000 at 10"
    assert sparkline([[0, 0.5]]) == ""


def test_looking_needs_no_right_to_write(storage: Path) -> None:
    search = half_way(storage)
    assert not driver_runs(search)
    assert not search.driver_lock.exists()
    with Ledger(search):
        os.chmod(search.folder, 0o555)
        try:
            assert driver_runs(search)
        finally:
            os.chmod(search.folder, 0o755)
    assert not driver_runs(search)


def test_bad_usage(run: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no search named digit .*: there is digits"):
        run("digit")
    with pytest.raises(UserError, match="--watch needs the NAME"):
        run("--watch")
    with pytest.raises(UserError, match="no search under"):
        status_command(None, False, False, tmp_path / "empty")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (300, "5 min"), (7200, "2.0 h"), (200_000, "2.3 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_age_of_the_last_step_of_the_worker_that_is_least_far(
    run: Callable[..., str], storage: Path
) -> None:
    search = half_way(storage)
    now = time.time()
    signs = [LastSign(r, f"gpu-{r}", 40 - r, "waiting for data", now - 300 * r) for r in (0, 1)]
    for job in ("t002", "t001", "base-w96"):  # of these only t002 runs
        write_last_signs(search.jobs / job, signs)
    assert "last step" not in run("half")  # nobody is at work on it
    with Ledger(search):
        text = run("half")
        assert "t002: last step 39 5 min ago (rank 1 on gpu-1, waiting for data)" in text
        assert text.count("last step") == 1
        (found,) = json.loads(run("half", "--json"))["last_steps"]
        assert (found["job"], found["rank"], found["step"]) == ("t002", 1, 39)
        assert 299 < found["seconds"] < 330
        write_last_signs(search.jobs / "t002", [LastSign(0, "a", 40, "over", now - 1e6)])
        assert "last step" not in run("half")  # left behind by an earlier driver's workers
