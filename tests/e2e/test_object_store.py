"""A search kept in an object store, with the real command line and a real S3 server.

The driver's machine is lost amid the finals: another one, with an empty disk, goes on. Each
machine here is a folder to work in and a cache of its own. The first test is slow, as it starts
Ray twice and trains three models; tests/pipelines/storage has the pieces.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter

import psutil
import pytest
import yaml
from stores import BUCKET, KEYS, s3_server
from thinning import fast
from tiny_search import LEARNS, ONE_WORKER, TINY, TOKENPOOL

ADDRESS = f"s3://{BUCKET}/runs"
SEARCH = "runs/searches/tiny"

CONFIG = TINY | {
    "storage": ADDRESS,
    "data": {"image_size": 32},
    "finals": {
        "trials": 2,
        "max_concurrent": 1,
        "workers": ONE_WORKER,
        "noise_margin": 0.5,
        "train": LEARNS | {"epochs": 3, "checkpoint_every_steps": 10},
    },
    "publish": {"latency_batches": [1]},
}


class Machine:
    """Somewhere to type commands: an empty folder, and a cache that nobody shares."""

    def __init__(self, root, server, digits):
        self.root = root
        root.mkdir()
        values = CONFIG | {"data": CONFIG["data"] | {"path": str(digits)}}
        (root / "tiny.yaml").write_text(yaml.safe_dump(values))
        self.environment = os.environ | server.environment | {
            "TOKENPOOL_CACHE": str(root / "cache"),
            "TMPDIR": "/tmp",
        }  # fmt: skip
        self.environment.pop("TOKENPOOL_RUNS", None)

    def run(self, *words, timeout=600, **environment):
        return subprocess.run(
            [TOKENPOOL, *words],
            cwd=self.root,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, *words):
        with open(self.root / "log", "w") as log:
            return subprocess.Popen(
                [TOKENPOOL, *words],
                cwd=self.root,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def said(self):
        return (self.root / "log").read_text()


@pytest.fixture(scope="module")
def server():
    with s3_server() as server:
        yield server


def ledger(server):
    """The events that are in the store."""
    text = b"".join(server.get(name) for name in sorted(server.names(f"{SEARCH}/ledger/")))
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.fault("driver's machine lost: an empty one goes on")
def test_the_drivers_machine_is_lost_and_an_empty_one_goes_on(server, digits, tmp_path):
    first = Machine(tmp_path / "first", server, digits)
    driver, family = first.start("search", "tiny.yaml"), []
    try:
        deadline = time.monotonic() + 400
        while "trial_report" not in [event["event"] for event in ledger(server)]:
            assert driver.poll() is None and time.monotonic() < deadline, first.said()
            family = psutil.Process(driver.pid).children(recursive=True)
            time.sleep(0.1)
        third = Machine(tmp_path / "third", server, digits)
        status = third.run("status", "tiny", "--storage", ADDRESS)
        assert status.returncode == 0 and "running" in status.stdout, status.stderr
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    psutil.wait_procs(family, timeout=120)
    shutil.rmtree(first.root)  # the machine is gone
    before = ledger(server)

    second = Machine(tmp_path / "second", server, digits)
    done = second.run("search", "tiny.yaml")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Resuming search tiny" in done.stdout
    after = ledger(server)
    assert after[: len(before)] == before, "nothing that was recorded is lost"
    new = [event["event"] for event in after[len(before) :]]
    assert "base_report" not in new
    over = [e["trial_id"] for e in after if e["event"] in ("trial_done", "trial_stopped")]
    created = [e["trial_id"] for e in after if e["event"] == "trial_created"]
    assert sorted(over) == created and created[0] == "t000", "no trial is lost or doubled"
    epochs = [(e["trial_id"], e["report"]["epoch"]) for e in after if e["event"] == "trial_report"]
    assert max(Counter(epochs).values()) == 1, "no epoch is told of twice"
    names = {name.removeprefix(f"{SEARCH}/") for name in server.names(f"{SEARCH}/")}
    assert {"results.parquet", "front.csv", "front.png", "front.html", "config.yaml"} <= names
    assert any(name.startswith("jobs/t000/best-epoch-") for name in names)
    assert not [name for name in names if name.startswith(("drivers/0", "stop", ".check"))]
    again = second.run("search", "tiny.yaml", timeout=60)
    assert again.returncode == 0 and "is complete" in again.stdout and ledger(server) == after

    look_from_a_third(Machine(tmp_path / "fourth", server, digits))
    found = subprocess.run(
        ["grep", "-rlaF", "pLaNt3d", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert found.stdout == "", "keys were written down"
    for name in server.names():
        assert not any(key.encode() in server.get(name) for key in list(KEYS.values())[:2]), name


def look_from_a_third(machine):
    there = ("--storage", ADDRESS)
    front = json.loads(machine.run("front", "tiny", "--json", *there).stdout)
    assert front["points"] and all(point["top1_val"] is not None for point in front["points"])
    pick = machine.run("pick", "tiny", "--knee", *there)
    assert pick.returncode == 0 and "knee" in pick.stdout
    model = front["points"][-1]["id"]
    export = machine.run("export", "tiny", model, "--out", "taken", *there)
    assert export.returncode == 0, export.stderr
    assert (machine.root / "taken" / "export.json").is_file()
    report = machine.run("report", "tiny", *there)
    assert f"{ADDRESS}/searches/tiny/report.html" in report.stdout, report.stderr
    assert "t000" in machine.run("logs", "tiny", *there).stdout
    assert "nothing to stop" in machine.run("stop", "tiny", *there).stdout
    assert "complete" in machine.run("status", *there).stdout


@pytest.mark.parametrize(
    ("settings", "environment", "says"),
    fast(
        1,
        [
            (["storage=s3://no-such-bucket/runs"], {}, "there is no such bucket"),
            ([], {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "nothing answers"),
            (["storage=s3://ID:pLaNt3dpLaNt3d@bucket/runs"], {}, "leave it out"),
            (["storage=abc://bucket/runs"], {}, "at an address at s3://, gs:// or abfs://"),
        ],
    ),
)
def test_a_store_that_cannot_be_used_is_one_line_before_anything_is_started(
    server, digits, tmp_path, settings, environment, says
):
    machine = Machine(tmp_path / "machine", server, digits)
    before = server.names()
    words = [word for setting in settings for word in ("--set", setting)]
    result = machine.run("search", "tiny.yaml", *words, **environment)
    assert result.returncode == 2, result.stderr + result.stdout
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and says in lines[0] and "pLaNt3d" not in lines[0], result.stderr
    assert "Ray" not in result.stdout and server.names() == before


def test_a_search_that_is_not_there_and_what_is_are_named(server, digits, tmp_path):
    machine = Machine(tmp_path / "machine", server, digits)
    result = machine.run("front", "tinny", "--storage", f"{ADDRESS}-empty", timeout=60)
    assert result.returncode == 2
    assert f"no search named tinny under {ADDRESS}-empty" in result.stderr
