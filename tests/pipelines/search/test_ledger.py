import json
import os
import signal
import subprocess
import sys

import ledgers
import pytest
from ledgers import CREATED

from pipelines.errors import UserError
from pipelines.search.ledger import Ledger, read_events
from pipelines.search.recorder import Recorder
from pipelines.search.state import SearchState, fold, load_state
from pipelines.storage.search_files import Search


def created(ledger):
    base = {"width": 64, "num_heads": 2, "gmacs": 0.02}
    ledger.append("created", config=ledgers.config(), config_hash="x", num_classes=10, bases=[base])


def trial(ledger, trial_id="t000"):
    ledger.append(
        "trial_created",
        trial_id=trial_id,
        width=64,
        num_heads=2,
        schedule=[8, 4],
        method="wkmedoids",
        gmacs=0.01,
    )


def test_what_is_appended_is_read_back_in_order(tmp_path):
    with Ledger(Search(tmp_path, "s")) as ledger:
        for number in range(5):
            ledger.append("note", number=number)
    events = list(read_events(Search(tmp_path, "s").ledger))
    assert [event["number"] for event in events] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("torn", [b'{"event":"no', b"{", b'{"event":"x","time":1}'])
def test_a_torn_last_line_never_happened(tmp_path, torn):
    path = Search(tmp_path, "s").ledger
    with Ledger(Search(tmp_path, "s")) as ledger:
        ledger.append("note", number=1)
    with path.open("ab") as file:
        file.write(torn)
    assert len(list(read_events(path))) == 1
    with Ledger(Search(tmp_path, "s")) as ledger:
        ledger.append("note", number=2)
    assert [event["number"] for event in read_events(path)] == [1, 2]


@pytest.mark.fault("ledger with a damaged line")
def test_a_damaged_line_in_the_middle_is_refused_and_named(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"event":"a","time":1}\n???\n{"event":"b","time":2}\n')
    with pytest.raises(UserError, match="line 2 is damaged"):
        list(read_events(path))


@pytest.mark.fault("two drivers on one search")
def test_one_search_has_one_driver(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom pipelines.search.ledger import Ledger\n"
        "from pipelines.storage.search_files import Search\n"
        "ledger = Ledger(Search(Path(sys.argv[1]), 's'))\nprint('held', flush=True)\n"
        "time.sleep(60)"
    )
    search = Search(tmp_path, "s")
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        who = rf"already running .*, by process {holder.pid} on {os.uname().nodename}: "
        with pytest.raises(UserError, match=who):
            Ledger(search)
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    # A driver that was killed leaves no lock behind.
    Ledger(search).close()


def test_a_resumed_trial_reports_an_epoch_once(tmp_path):
    with Ledger(Search(tmp_path, "s")) as ledger:
        created(ledger)
        trial(ledger)
        for epoch, top1 in [(1, 0.1), (2, 0.2), (3, 0.3), (2, 0.25)]:
            report = {"epoch": epoch, "top1_minival": top1, "device_seconds": epoch * 2.0}
            ledger.append("trial_report", trial_id="t000", report=report)
    state = load_state(Search(tmp_path, "s"))
    reports = state.trials["t000"].reports
    assert [(r.epoch, r.top1_minival) for r in reports] == [(1, 0.1), (2, 0.25)]
    assert state.trials["t000"].status == "running" and state.device_seconds == 4.0


def test_the_state_is_the_same_however_often_it_is_rebuilt(tmp_path):
    with Ledger(Search(tmp_path, "s")) as ledger:
        created(ledger)
        trial(ledger)
        ledger.append("screened", width=64, rows=[[[8, 4], 0.01, 0.5, 1.2]])
        ledger.append("trial_done", trial_id="t000", checkpoint="/x", top1_minival=0.9)
        ledger.append("published", trial_id="t000", top1_val=0.8)
        ledger.append("published", width=64, top1_val=0.7)
        ledger.append("an event of a later version")
    events = list(read_events(Search(tmp_path, "s").ledger))
    state = fold("s", events)
    assert fold("s", json.loads(json.dumps(events))) == state == load_state(Search(tmp_path, "s"))
    assert state.trials["t000"].top1_val == 0.8 and state.base(64).top1_val == 0.7
    assert state.screened[0].candidate.schedule == (8, 4)


def test_an_unknown_search_offers_near_matches(tmp_path):
    with Ledger(Search(tmp_path, "digits")) as ledger:
        created(ledger)
    with pytest.raises(UserError, match="there is digits"):
        load_state(Search(tmp_path, "digit"))
    with pytest.raises(UserError, match="tokenpool search"):
        load_state(Search(tmp_path / "empty", "digits"))


@pytest.mark.parametrize(
    "line",
    [
        '{"event":"trial_report","time":1,"trial_id":"t009","report":{}}',
        '{"event":"created","time":1}',
        "5",
        "{}",
    ],
)
def test_an_event_that_makes_no_sense_is_one_line_and_not_a_traceback(tmp_path, line):
    folder = tmp_path / "searches" / "s"
    folder.mkdir(parents=True)
    (folder / "ledger.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="damaged"):
        load_state(Search(tmp_path, "s"))


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        Ledger(Search(tmp_path / "file", "s"))


def test_a_search_begun_before_a_stage_existed_goes_on_after_it():
    base = {"width": 64, "num_heads": 2, "gmacs": 0.02}
    created = {
        "event": "created",
        "time": 1,
        "config": ledgers.config(),
        "config_hash": "",
        "num_classes": 2,
    }
    state = fold(
        "old", [created | {"bases": [base]}, {"event": "stage_done", "time": 2, "stage": "screen"}]
    )
    pending = [name for name, status in state.stages.items() if status == "pending"]
    assert pending == ["supernet", "rescreen", "finals", "publish"]


def test_a_search_that_was_moved_finds_its_checkpoints(tmp_path):
    before, after = Search(tmp_path / "runs", "s"), Search(tmp_path / "elsewhere", "s")
    with Ledger(before) as ledger:
        recorder = Recorder(ledger, SearchState("s", before))
        for trial_id, checkpoint in (
            ("t000", f"{before.jobs}/t000/epoch-0002/model"),
            ("t001", "/other/disk/t001/model"),
        ):
            recorder.add("trial_created", trial_id=trial_id, **CREATED)
            recorder.add("trial_done", trial_id=trial_id, checkpoint=checkpoint, top1_minival=0.5)
        assert recorder.state.trials["t000"].checkpoint == f"{before.jobs}/t000/epoch-0002/model"
    before.root.rename(after.root)
    moved = fold("s", read_events(after.ledger), after)
    assert moved.trials["t000"].checkpoint == f"{after.jobs}/t000/epoch-0002/model"
    assert moved.trials["t001"].checkpoint == "/other/disk/t001/model"
