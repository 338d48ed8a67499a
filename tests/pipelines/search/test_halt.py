import datetime
import json
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import ledgers
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.config import BudgetConfig, config_hash
from pipelines.search.halt import (
    DeviceMeter,
    Halt,
    SearchEnded,
    budget_left,
    ends_on_signals,
    read_request,
    request_stop,
    withdraw_request,
)
from pipelines.search.ledger import Ledger, read_events
from pipelines.search.recorder import Recorder
from pipelines.search.stages.base_stage import has_learned
from pipelines.search.stages.context import StageContext
from pipelines.search.stages.finals_stage import _within_budget
from pipelines.search.state import Model, SearchState, fold, search_names
from pipelines.search.state_records import candidate_of
from pipelines.storage.search_files import Search


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


BASE = {"width": 8, "num_heads": 2, "gmacs": 0.01}
CREATED = {
    "event": "created",
    "config": ledgers.config(),
    "config_hash": "",
    "num_classes": 2,
    "bases": [BASE],
}


def events(*rows: tuple[float, str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"event": kind, "time": time, **fields} for time, kind, fields in rows]


def test_device_seconds_are_those_of_every_stage():
    report = {"epoch": 1, "top1_minival": 0.5, "device_seconds": 10.0}
    state = fold(
        "s",
        [
            CREATED | {"time": 1.0},
            *events(
                (2, "base_report", {"width": 8, "report": report}),
                (3, "spent", {"stage": "calibrate", "device_seconds": 2.0}),
                (4, "spent", {"stage": "screen", "device_seconds": 3.0}),
                (5, "spent", {"stage": "screen", "device_seconds": 4.0}),
                (6, "spent", {"stage": "base", "device_seconds": 0.5}),
            ),
        ],
    )
    assert state.stage_seconds == {"base": 10.5, "calibrate": 2.0, "screen": 7.0}
    assert state.device_seconds == 19.5


def test_a_duration_counts_time_at_work_and_not_the_night_between():
    began = {"budget": {}}
    state = fold(
        "s",
        [
            CREATED | {"time": 101.0},
            *events(
                (101, "began", began),
                (110, "stage_done", {"stage": "base"}),
                (5000, "began", began),
                (5007, "stage_done", {"stage": "calibrate"}),
            ),
        ],
    )
    assert state.seconds_at_work() == 9 + 7
    assert state.seconds_at_work(5020.0) == 9 + 20
    budget = BudgetConfig(deadline="29s", device_hours=1, trials=3)
    assert budget_left(budget, state, 5020.0) == {"device_hours": 1.0, "seconds": 0.0, "trials": 3}
    at = datetime.datetime.fromtimestamp(5100.0).isoformat()
    assert budget_left(BudgetConfig(deadline=at), state, 5020.0) == {"seconds": 80.0}


@pytest.mark.parametrize("deadline", ["tomorrow", "0h", "8 parsecs", 8, "-1h"])
def test_a_deadline_that_says_nothing_is_refused(deadline):
    with pytest.raises(ValidationError, match="neither a duration"):
        BudgetConfig(deadline=deadline)


def test_the_budget_decides_no_result():
    plain = {"name": "s", "data": {}, "budget": {"trials": 3}}
    assert config_hash(plain) == config_hash(plain | {"budget": {"trials": 4}})
    assert config_hash(plain) != config_hash(plain | {"name": "t"})


def test_the_meter_counts_what_no_report_tells_of():
    clock = Clock()
    meter = DeviceMeter(clock)
    meter.start("t000", 4)
    meter.start("screen", 0.5)
    clock.now = 10
    assert meter.running == 45 and meter.take("t000") == 40
    clock.now = 12
    assert meter.running == 8 + 6
    assert meter.end("screen") == 6 and meter.end("screen") == 0
    assert meter.end("t000") == 8 and meter.running == 0


def test_device_hours_are_reached_between_two_reports(tmp_path):
    clock = Clock(1000.0)
    meter = DeviceMeter(clock)
    state = SearchState("s", spent={"screen": 3000.0})
    halt = Halt(BudgetConfig(device_hours=1), state, meter, Search(tmp_path, "s"), clock)
    halt.check()
    meter.start("t000", 2)
    clock.now += 299
    halt.check()
    clock.now += 2
    with pytest.raises(SearchEnded, match=r"budget\.device_hours 1 is reached") as ended:
        halt.check()
    assert ended.value.why == "budget"
    clock.now += 5
    assert halt.seconds == 5


def test_a_request_is_found_and_says_who(tmp_path):
    clock = Clock()
    halt = Halt(BudgetConfig(), SearchState("s"), DeviceMeter(), Search(tmp_path, "s"), clock)
    assert halt.ended is None
    request = request_stop(Search(tmp_path, "s"))
    assert read_request(Search(tmp_path, "s")) == request
    clock.now += 1
    assert halt.ended is not None and str(halt.ended) == f"stopped by {request.who}"
    withdraw_request(Search(tmp_path, "s"))
    assert halt.ended is not None, "a search does not start again by itself"
    withdraw_request(Search(tmp_path, "s"))
    Search(tmp_path, "s").stop_request.write_text("[half")
    with pytest.raises(SearchEnded, match="somebody"):
        Halt(BudgetConfig(), SearchState("s"), DeviceMeter(), Search(tmp_path, "s"), clock).check()


@pytest.fixture
def context(tmp_path):
    with Ledger(Search(tmp_path, "s")) as ledger:
        recorder = Recorder(ledger, SearchState("s"))
        halt = Halt(BudgetConfig(), recorder.state, DeviceMeter(), ledger.search)
        config = SimpleNamespace(budget=BudgetConfig(trials=2))
        screen = SimpleNamespace(say=lambda *_, **__: None)
        meter = DeviceMeter(Clock())
        yield StageContext(config, None, recorder, screen, halt, meter)  # type: ignore[arg-type]


def test_actors_cost_as_long_as_they_live_even_if_they_fail(context):
    def work():
        with context.metered("screen", 2):
            context.meter._clock.now += 5
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert context.state.stage_seconds == {"screen": 10.0}


def test_running_trials_may_come_to_their_next_report_and_then_all_end(context):
    with context.watch("finals", 2) as watch:
        for name in ("t000", "t001", "t002"):
            watch.started(name)
        watch.over("t002")
        assert not watch.ending and not watch.now
        context.halt.request("enough")
        assert watch.ending and not watch.now
        watch.heard("t000")
        context.meter._clock.now += 3
        assert not watch.now, "t001 has not reported yet"
        watch.heard("t001")
        assert watch.now
        context.meter._clock.now += 1
    # Since their last reports: t000 for 4 s, t001 for 1 s, two workers each.
    assert context.state.stage_seconds == {"finals": 10.0}


def test_nobody_waits_for_ever_for_a_report(context):
    clock = Clock(50.0)
    context.halt._clock = clock
    with context.watch("finals", 1) as watch:
        watch.started("t000")
        context.halt.request("enough")
        assert watch.ending and not watch.now
        clock.now += 31
        assert watch.now


def test_the_budget_of_trials_lets_those_go_on_that_were_begun(context):
    def trial(name, status):
        return Model(name, "final", candidate_of(8, (4,), 0.01, "kmedoids"), 2, status=status)

    trials = [trial("a", "done"), trial("b", "running"), trial("c", "pending")]
    context.state.models.update({t.model_id: t for t in trials})
    assert [t.model_id for t in _within_budget(context, trials[1:])] == ["b"]
    context.state.trials["a"].status = "pending"
    assert [t.model_id for t in _within_budget(context, trials)] == ["a", "b"]


def test_what_belongs_together_is_written_at_once(tmp_path, monkeypatch):
    writes = []
    with Ledger(Search(tmp_path, "s")) as ledger:
        real = ledger._file

        class Counting:
            def write(self, data):
                writes.append(bytes(data))
                return real.write(data)

            def __getattr__(self, name):
                return getattr(real, name)

        monkeypatch.setattr(ledger, "_file", Counting())
        recorder = Recorder(ledger, SearchState("s"))
        recorder.add_all([("note", {"number": 1}), ("note", {"number": 2, "text": "x" * 100_000})])
        monkeypatch.undo()
    assert len(writes) == 1 and writes[0].count(b"\n") == 2
    assert len(list(read_events(Search(tmp_path, "s").ledger))) == 2


def stop(storage, *words):
    return CliRunner().invoke(app, ["stop", *words, "--storage", str(storage)])


def test_stop_says_when_there_is_nothing_to_stop(tmp_path):
    search = Search(tmp_path, "s")
    with Ledger(search) as ledger:
        ledger.append("created", **{k: v for k, v in CREATED.items() if k != "event"})
    result = stop(tmp_path, "s")
    assert result.exit_code == 0 and "is not running: there is nothing to stop" in result.output
    assert read_request(search) is None
    with pytest.raises(Exception, match="no search named t"):
        CliRunner().invoke(app, ["stop", "t", "--storage", str(tmp_path)], catch_exceptions=False)


def test_stop_from_another_process_is_obeyed_and_told(tmp_path):
    search = Search(tmp_path, "s")
    with Ledger(search) as ledger:
        recorder = Recorder(ledger, SearchState("s"))
        recorder.add("created", **{k: v for k, v in CREATED.items() if k != "event"})
        halt = Halt(BudgetConfig(), recorder.state, DeviceMeter(), search)
        command = [sys.executable, "-m", "pipelines.cli", "stop", "s", "--storage", str(tmp_path)]
        asking = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        waiting = threading.Event()
        while halt.ended is None and asking.poll() is None:
            waiting.wait(0.05)
        recorder.add("ended", why="stop", reason=str(halt.ended))
        withdraw_request(search)
    said, _ = asking.communicate(timeout=120)
    assert asking.returncode == 0
    assert "search s is asked to stop" in said and "search s stopped in stage base" in said
    state = fold("s", read_events(search.ledger))
    assert state.ended.startswith("stopped by ")


def test_a_search_that_never_began_is_not_listed(tmp_path):
    Ledger(Search(tmp_path, "empty")).close()
    with Ledger(Search(tmp_path, "s")) as ledger:
        ledger.append("created", **json.loads(json.dumps({"x": 1})))
    assert search_names(tmp_path) == ["s"]


def test_what_one_trial_came_to_may_end_the_others_at_once(context):
    with context.watch("base", 1) as watch:
        watch.started("base-w8")
        assert not watch.now
        watch.give_up()
        assert watch.ending and watch.now


@pytest.mark.parametrize(
    ("top1", "classes", "learned"),
    [
        (0.19, 10, True),
        (0.18, 10, False),
        (0.0021, 1000, True),
        (0.0019, 1000, False),
        (0.56, 2, True),  # twice chance would be all
        (0.54, 2, False),
    ],
)
def test_a_base_near_chance_has_not_learned(top1, classes, learned):
    assert has_learned(top1, classes) is learned


def test_sigterm_asks_for_an_end_in_order(tmp_path):
    halt = Halt(BudgetConfig(), SearchState("s"), DeviceMeter(), Search(tmp_path, "s"))
    before = signal.getsignal(signal.SIGTERM)
    with ends_on_signals(halt):
        signal.raise_signal(signal.SIGTERM)
        assert halt.ended is not None and "SIGTERM" in str(halt.ended)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_first_ctrl_c_asks_for_an_end_in_order_and_the_second_does_not_wait(tmp_path, capfd):
    halt = Halt(BudgetConfig(), SearchState("s"), DeviceMeter(), Search(tmp_path, "s"))
    before = signal.getsignal(signal.SIGINT)
    with ends_on_signals(halt):
        signal.raise_signal(signal.SIGINT)
        assert halt.ended is not None and halt.ended.why == "interrupt"
        assert "Ctrl-C again ends it at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
