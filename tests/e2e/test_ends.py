"""How a search ends before it is done, with the real command line: budgets and stops.

All are slow: they start Ray, some of them several times, and train.
"""

import json
import subprocess
import time

import pytest
import yaml
from tiny_search import LEARNS, ONE_WORKER, TINY, TOKENPOOL

from pipelines.search.ledger import read_events
from pipelines.storage.search_files import Search

CONFIG = TINY | {
    "finals": {
        "trials": 1,
        "max_concurrent": 1,
        "workers": ONE_WORKER,
        "noise_margin": 0.5,
        "train": LEARNS | {"epochs": 400},
    },
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("ends")
    (place / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    assert tokenpool(place, "prepare", "digits", "data/digits").returncode == 0
    return place


def tokenpool(place, *words, timeout=900):
    return subprocess.run(
        [TOKENPOOL, *words], cwd=place, capture_output=True, text=True, timeout=timeout, check=False
    )


def events(place, name="tiny"):
    return list(read_events(Search(place / "runs", name).ledger))


@pytest.mark.slow
def test_a_base_that_does_not_learn_is_said_in_one_line(place):
    words = ["name=dull", "base.train.lr=1e-7", "base.train.min_lr=0", "base.train.epochs=1"]
    sets = [word for setting in words for word in ("--set", setting)]
    result = tokenpool(place, "search", "tiny.yaml", *sets)
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and "width 16 does not learn" in lines[0], result.stderr
    assert "base.train.lr" in lines[0]


@pytest.mark.slow
def test_stopped_from_another_terminal_then_out_of_budget_then_done(place):
    quick = ["--set", "finals.train.epochs=400"]
    with (place / "log").open("wb") as log:
        driver = subprocess.Popen(
            [TOKENPOOL, "search", "tiny.yaml", *quick], cwd=place, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 900
        while "trial_report" not in [event["event"] for event in events(place)]:
            assert driver.poll() is None and time.monotonic() < deadline, (
                place / "log"
            ).read_text()
            time.sleep(0.1)
        assert "running" in tokenpool(place, "status", "tiny").stdout
        stopped = tokenpool(place, "stop", "tiny")
        assert stopped.returncode == 0, stopped.stderr
        assert "stopped in stage finals" in stopped.stdout
        assert "cut short: t000 after epoch" in stopped.stdout
        assert driver.wait(timeout=120) == 0
    finally:
        if driver.poll() is None:
            driver.kill()
    assert "stopped by" in (place / "log").read_text()
    assert "nothing to stop" in tokenpool(place, "stop", "tiny").stdout
    status = json.loads(tokenpool(place, "status", "tiny", "--json").stdout)
    assert status["state"] == "stopped" and status["trials"] == {"running": 1}
    before = events(place)
    reports = sum(e["event"] == "trial_report" for e in before)

    # A budget of a little more than was used: it goes on where it was, and ends with a front.
    hours = (status["device_seconds"] + 8) / 3600
    out = tokenpool(place, "search", "tiny.yaml", *quick, "--set", f"budget.device_hours={hours}")
    assert out.returncode == 0, out.stderr
    assert "budget.device_hours" in out.stdout and "raise budget.device_hours" in out.stdout
    after = events(place)
    assert after[: len(before)] == before
    epochs = [e["report"]["epoch"] for e in after if e["event"] == "trial_report"]
    assert epochs == sorted(set(epochs)) and len(epochs) > reports, "no epoch is trained twice"
    assert [e["why"] for e in after if e["event"] == "ended"] == ["stop", "budget"]
    assert any(e["event"] == "published" for e in after), "what is done is published"
    status = json.loads(tokenpool(place, "status", "tiny", "--json").stdout)
    assert status["state"] == "stopped" and status["budget_left"]["device_hours"] == 0
    assert status["device_seconds"] < 3600 * hours + 60

    # No more is left, so nothing starts; with more it would go on.
    again = tokenpool(place, "search", "tiny.yaml", *quick, "--set", f"budget.device_hours={hours}")
    assert again.returncode == 0 and "raise budget.device_hours" in again.stdout
    assert events(place) == after
