import subprocess
import sys
from pathlib import Path

import ledgers

from pipelines.results.ledger_text import story

TOKENPOOL = str(Path(sys.executable).parent / "tokenpool")
EVENTS = [
    {"event": "system", "time": 1.0, "metrics": {}},
    {"event": "base_report", "time": 2.0, "width": 96,
     "report": {"epoch": 3, "loss": 0.25, "top1_minival": 0.9}},
    {"event": "stage_done", "time": 3.0, "stage": "base"},
    {"event": "screened", "time": 4.0, "width": 96, "rows": [[1], [2]]},
    {"event": "trial_created", "time": 5.0, "trial_id": "t000", "width": 96, "gmacs": 0.0123},
    {"event": "trial_stopped", "time": 6.0, "trial_id": "t000", "reason": "below the front"},
    {"event": "published", "time": 7.0, "trial_id": "t000", "top1_val": 0.5},
]  # fmt: skip


def test_each_event_is_a_line_that_says_what_happened_to_whom():
    said = [line.split("  ", 1)[1] for line in story(iter(EVENTS))]
    assert said == [
        "base report  width 96  epoch 3  loss 0.2500  top-1 90.00%",
        "stage done  base",
        "screened  width 96  2 schedules",
        "trial created  t000  0.0123 GMACs",
        "trial stopped  t000  below the front",
        "published  t000  top-1 on val 50.00%",
    ]


def test_logs_of_a_search_of_this_machine(tmp_path):
    created = {"event": "created", "time": 1.0, "config": ledgers.config("x"), "config_hash": "h",
               "num_classes": 10, "bases": [{"width": 96, "num_heads": 3, "gmacs": 1}]}  # fmt: skip
    ledgers.write_ledger(tmp_path, "x", [created, *EVENTS[:3]])
    for words in ([], ["--follow"]):  # nobody runs it, so there is nothing to wait for
        shown = subprocess.run(
            [TOKENPOOL, "logs", "x", "--storage", str(tmp_path), *words],
            capture_output=True, text=True, check=True, timeout=240,
        ).stdout.splitlines()  # fmt: skip
        assert [line.split("  ")[1] for line in shown] == ["created", "base report", "stage done"]
