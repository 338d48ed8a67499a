"""Clocks that jump: what a search has cost and how long it may work do not follow them."""

import time

import ledgers
import pytest

from pipelines.config import BudgetConfig
from pipelines.search.halt import DeviceMeter, Halt
from pipelines.search.ledger import Ledger, read_events
from pipelines.search.state import SearchState, fold
from pipelines.storage.search_files import Search

DAY = 86400.0


@pytest.mark.fault("clock set a day or a month forth and back")
def test_a_clock_that_somebody_sets_moves_neither_records_nor_budgets(tmp_path, monkeypatch, told):
    real, jump = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + jump[0])
    with Ledger(Search(tmp_path, "s")) as ledger:
        begun = real()
        ledger.append("created", config=ledgers.config(), config_hash="", num_classes=2, bases=[])
        for jump[0] in (DAY, -DAY, 30 * DAY, 0.0):
            ledger.append("began", budget={})
            ledger.append("stage_done", stage="base")
            state = fold("s", read_events(ledger.path))
            halt = Halt(BudgetConfig(deadline="5m"), state, DeviceMeter(), ledger.search)
            assert halt.ended is None, jump
            assert 0 <= state.seconds_at_work() < 60, jump
    times = [event["time"] for event in read_events(ledger.path)]
    assert times == sorted(times) and 0 <= times[-1] - begun + 0.01 < 60
    told("clock set a day or a month forth and back", times=2)  # beside the mark


def test_a_deadline_by_the_clock_goes_by_the_clock(tmp_path, monkeypatch):
    real = time.time
    budget = BudgetConfig(deadline=time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(real() + 600)))
    given = (budget, SearchState("s"), DeviceMeter(), Search(tmp_path, "s"))
    halt = Halt(*given)
    assert halt.ended is None
    halt = Halt(*given, wall=lambda: real() + DAY)
    assert "budget.deadline" in str(halt.ended)
