"""The real command line through the real Ray, DeepSpeed and MLflow, killed and typed again.

It takes minutes, as it starts Ray twice and trains two models; it is the test of the whole chain.
Among the slow tests it is interrupted as well, trains two widths and several finals in rounds.
"""

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from one_process import assert_refused
from thinning import fast
from tiny_search import LEARNS, ONE_WORKER, TINY, TOKENPOOL

from pipelines.search.ledger import read_events
from pipelines.storage.search_files import Search

# Two of most things; `SMALL` below is what takes least.
CONFIG = TINY | {
    "space": {"widths": [{"width": 32, "heads": 2}, {"width": 16, "heads": 2}]},
    "base": TINY["base"] | {"max_concurrent": 2},
    "calibrate": {},
    "screen": TINY["screen"] | {"schedules": 24, "generations": 2, "actors": 2},
    "finals": {
        "trials": 3,
        "workers": ONE_WORKER | {"num_workers": 2},
        "grace_epochs": 1,
        "noise_margin": 1e-6,
        "train": LEARNS | {"epochs": 2},
    },
}
# One of everything: what takes long is the start of each training, scorer and Ray.
SMALL = CONFIG | {
    "space": {"widths": [{"width": 16, "heads": 2}]},
    "calibrate": {"counts": 3, "images": 64},
    "screen": CONFIG["screen"] | {"schedules": 12, "actors": 1},
    "finals": CONFIG["finals"] | {"trials": 1, "rounds": 1, "noise_margin": 0.5},
    "publish": {"latency_batches": [1]},
}


SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "pLaNt3d/aws+abcdef",
    "HF_TOKEN": "pLaNt3d-hf-0123456789",
    "MLFLOW_TRACKING_PASSWORD": "pLaNt3d-mlflow-pass",
    "DATABASE_URL": "postgresql://me:pLaNt3d-db-pass@127.0.0.1/db",
}


@pytest.fixture(scope="module", autouse=True)
def _secrets():
    """They are in the environment of every command here, as they are in people's."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in SECRETS.items():
            environment.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    made = tokenpool(place, "prepare", "digits", "digits")
    assert made.returncode == 0, made.stderr
    return place / "digits"


@pytest.fixture
def place(tmp_path, data):
    (tmp_path / "data").symlink_to(data.parent)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SMALL))
    return tmp_path


def tokenpool(place, *words, timeout=400):
    return subprocess.run(
        [TOKENPOOL, *words], cwd=place, capture_output=True, text=True, timeout=timeout, check=False
    )


def ledger(place):
    return list(read_events(Search(place / "runs", "tiny").ledger))


def kinds(place):
    return [event["event"] for event in ledger(place)]


def signal_when(place, number, reached):
    """Runs the search and signals it as soon as `reached` holds: Ctrl-C goes to the whole
    process group as from a terminal, SIGKILL to the driver alone.

    Returns:
        The driver's exit code, what it printed, and the processes it had started.
    """
    with open(place / "driver.log", "w") as log:
        driver = subprocess.Popen(
            [TOKENPOOL, "search", "tiny.yaml"],
            cwd=place,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # A shell starts what runs in the background (this test, perhaps) deaf to Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    family = []
    deadline = time.monotonic() + 400
    while not reached(kinds(place)):
        assert driver.poll() is None, (place / "driver.log").read_text()
        assert time.monotonic() < deadline
        family = psutil.Process(driver.pid).children(recursive=True)
        time.sleep(0.2)
    if number == signal.SIGINT:
        os.killpg(driver.pid, number)
    else:
        driver.send_signal(number)
    driver.wait(timeout=120)
    return driver.returncode, (place / "driver.log").read_text(), family


def outlived(family):
    """Names of processes still there; Ray ends its own, its agents after a minute."""
    _, alive = psutil.wait_procs(family, timeout=120)
    names = [process.name() for process in alive]
    for process in alive:
        process.kill()
    return names


@pytest.mark.parametrize("widths", fast(1, [1, 2]))
def test_interrupted_killed_typed_again_and_browsed(place, widths):
    first = []
    if widths == 2:
        (place / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
        code, said, first = signal_when(place, signal.SIGINT, lambda seen: "base_report" in seen)
        assert code == 130 and "type the same command to go on" in said and "Traceback" not in said
    code, _, second = signal_when(place, signal.SIGKILL, lambda seen: "trial_report" in seen)
    assert code == -signal.SIGKILL
    before = ledger(place)
    assert kinds(place).count("base_done") == widths

    done = tokenpool(place, "search", "tiny.yaml")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Resuming search tiny" in done.stdout
    after = ledger(place)
    # Nothing that was finished ran again: the old events are a prefix, and no base came after.
    assert after[: len(before)] == before
    new = [event["event"] for event in after[len(before) :]]
    assert "base_report" not in new
    created = [event["trial_id"] for event in after if event["event"] == "trial_created"]
    finished = [
        event["trial_id"] for event in after if event["event"] in ("trial_done", "trial_stopped")
    ]
    assert created[0] == "t000" and len(created) <= 3 and sorted(finished) == sorted(created)
    scored = [str(row[:2]) for e in after if e["event"] == "screened" for row in e["rows"]]
    assert len(set(scored)) == len(scored) == 12 * widths
    stopped = {e["trial_id"]: e["reason"] for e in after if e["event"] == "trial_stopped"}
    assert all("the front" in reason for reason in stopped.values())
    assert kinds(place).count("screened") >= 2

    again = tokenpool(place, "search", "tiny.yaml")
    assert again.returncode == 0 and "is complete" in again.stdout
    assert ledger(place) == after

    check_front(place)
    check_mlflow(place, after)
    check_secrets(place)
    assert outlived(first + second) == [], "processes outlived their driver"


def check_front(place):
    front = json.loads(tokenpool(place, "front", "tiny", "--json").stdout)
    points = front["points"]
    assert points and 0 < front["hypervolume"] <= 1
    costs = [point["gmacs"] for point in points]
    tops = [point["top1_minival"] for point in points]
    assert costs == sorted(costs) and tops == sorted(tops)
    assert all(point["top1_val"] is not None for point in points)
    pick = tokenpool(place, "pick", "tiny", "--knee")
    assert pick.returncode == 0 and "knee" in pick.stdout
    folder = place / "runs/searches/tiny"
    assert "<html" in (folder / "front.html").read_text()[:500].lower()
    assert (folder / "front.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "results.parquet").stat().st_size > 0


def check_mlflow(place, events):
    client = MlflowClient(f"sqlite:///{place}/runs/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1 and all(run.info.status != "RUNNING" for run in runs)
    created = {event["trial_id"] for event in events if event["event"] == "trial_created"}
    points = {run.data.tags.get("tokenpool.point") for run in runs if run not in parents}
    assert created <= points
    names = {artifact.path for artifact in client.list_artifacts(parents[0].info.run_id)}
    assert {"front.csv", "front.png", "front.html"} <= names


def check_secrets(place):
    """None of the environment's is in anything that was written: the search's folder, MLflow's
    database, what was printed, and the logs of the Ray whose driver was killed; others are gone."""
    began = (place / "tiny.yaml").stat().st_mtime
    logs = [
        path
        for path in Path(tempfile.gettempdir()).glob("tokenpool-ray-*/r/session_2*")
        if path.stat().st_mtime >= began
    ]
    found = subprocess.run(
        ["grep", "-rlaF", "pLaNt3d", str(place), *map(str, logs)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert logs and found.stdout == "", found.stdout


def test_bad_input_ends_in_one_line(place):
    search, other = ("search", "tiny.yaml", "--set"), ("--set", "name=b")
    said = {
        (*search, "finals.trails=3"): "did you mean trials?",
        ("search", "none.yaml"): "no config file none.yaml",
        (*search, "data.path=nowhere", *other): "nowhere",
        (*search, "space.method=magic", *other): "magic",
        (*search, "space.max_gmacs=1e-9", *other): "GMACs",
        ("front", "tinny"): "no search named tinny",
        ("pick", "tiny"): "exactly one",
    }
    assert_refused(said.keys(), *said.values(), cwd=place)
    assert not Search(place / "runs", "b").ledger.exists()


def test_an_altered_beton_is_refused_before_anything_starts(place, tmp_path):
    copy = tmp_path / "digits"
    copy.mkdir()
    for file in (place / "data/digits").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    beton = copy / "train.beton"
    content = bytearray(beton.read_bytes())
    content[len(content) // 2] ^= 1
    beton.write_bytes(content)
    result = tokenpool(
        place, "search", "tiny.yaml", "--set", "name=c", "--set", f"data.path={copy}"
    )
    assert result.returncode == 1 and "train.beton" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
