"""Ctrl-C once and twice, SIGTERM: a search ends, leaves nothing behind, and goes on."""

import os
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml
from commands import Command

from pipelines.search.ledger import read_events
from pipelines.search.state import load_state
from pipelines.storage.search_files import Search

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3000)]

SEARCH = {
    "name": "s",
    "storage": "runs",
    "data": {"path": "digits", "image_size": 32, "loader": "torchvision"},
    "model": {"patch_size": 8, "depth": 2},
    "space": {"widths": [{"width": 32, "heads": 2}]},
    "base": {
        "workers": {"cpus_per_worker": 0.9},
        "train": {"epochs": 600, "batch_size": 64, "lr": 0.003, "warmup_epochs": 0.5},
    },
    "screen": {"cpus_per_actor": 0.9},
    "finals": {"workers": {"cpus_per_worker": 0.9}, "train": {"epochs": 6, "batch_size": 64}},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("signals")
    (root / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    assert Command("prepare", "digits", "digits", cwd=root).end() == 0
    return root


@pytest.fixture
def temporary():
    """A folder for temporary files alone; its path is short, as Ray's sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def check_status(place):
    """Another terminal is told how long ago the job's last step was."""
    deadline = time.monotonic() + 60
    while True:
        status = Command("status", "s", cwd=place)
        assert status.end() == 0, status.text
        if re.search(r"base-w32: last step \d+ \d+ s ago", " ".join(status.text.split())):
            return
        assert time.monotonic() < deadline, status.text


def shared_memory():
    return {path.name for path in Path("/dev/shm").glob("plasma*")}


@pytest.mark.parametrize(
    ("name", "signals", "codes", "says"),
    [
        ("Ctrl-C", [signal.SIGINT], {130}, "ended: interrupted; type the same command"),
        ("Ctrl-C twice", [signal.SIGINT] * 2, {130}, "interrupted"),
        ("SIGTERM", [signal.SIGTERM], {0}, "ended: stopped by SIGTERM; type the same command"),
    ],
)
def test_a_search_that_is_told_to_end(place, temporary, told, name, signals, codes, says):
    before = shared_memory()
    command = Command("search", "search.yaml", cwd=place, env={"TMPDIR": str(temporary)})
    try:
        command.wait_for("base models, epochs: ")
        if name == "Ctrl-C":
            check_status(place)
        family = command.family()
        assert len(family) > 8
        for number in signals:
            # A terminal sends Ctrl-C to all that it has started.
            send = os.killpg if number == signal.SIGINT else os.kill
            send(command.process.pid, number)
            if len(signals) > 1:
                command.wait_for("Ctrl-C again")
        assert command.end(timeout=120) in codes, command.text
        assert says in command.text and "Traceback" not in command.text, command.text
        # Nothing outlives it; Ray's agents take a minute.
        _, alive = psutil.wait_procs(family, timeout=120)
        assert [process.name() for process in alive] == []
        assert shared_memory() <= before
        left = [path for path in temporary.rglob("*") if path.is_file()]
        if len(signals) > 1:  # a part of a checkpoint: the next job on this machine deletes it
            left = [path for path in left if "tokenpool-checkpoint-" not in str(path)]
        assert left == [], "temporary files are left"
    finally:
        command.kill()
    ledger = Search(place / "runs", "s").ledger
    state = load_state(Search(place / "runs", "s"))
    epochs = [report.epoch for report in state.base(32).reports]
    assert epochs == list(range(1, len(epochs) + 1)) and 60 <= len(epochs) < 600
    if len(signals) == 1:
        assert list(read_events(ledger))[-1]["event"] in ("ended", "system")
    told(name, steps_lost=0 if len(signals) == 1 else 17)
