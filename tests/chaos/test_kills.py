"""`kill -9` on the driver at 50 random moments; the same command goes on as if nothing had been.

Every other kill waits, from its moment on, for a write to the ledger, to a checkpoint or to
MLflow's database, and falls into it. One amid a checkpoint kills all processes at once, as a power
cut would: the driver alone writes none.

Not part of `make test`: every kill costs a start of Ray. `make chaos` runs it. The place is kept
where TOKENPOOL_CHAOS_DIR says, and a run that is told to take no more than
TOKENPOOL_CHAOS_SECONDS is then gone on with by the next.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from mlflow import MlflowClient

from pipelines.results.front import build_front, history
from pipelines.search.ledger import read_events
from pipelines.search.state import STAGES, fold, load_state
from pipelines.storage.search_files import Search

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(7200)]

TOKENPOOL = str(Path(sys.executable).parent / "tokenpool")
KILLS = int(os.environ.get("TOKENPOOL_CHAOS_KILLS", "50"))
SEED = int(os.environ.get("TOKENPOOL_CHAOS_SEED", "0"))
SECONDS = float(os.environ.get("TOKENPOOL_CHAOS_SECONDS", "inf"))
# A moment is drawn from this share of the time an undisturbed run takes, from the first
# instruction of the driver on: so one search is killed many times before it is complete, and is
# there to be killed in all its stages.
SHARE = 0.3

# One job at a time, so that what the scheduler compares a trial with does not hang on timing.
CONFIG = {
    "name": "chaos",
    "storage": "runs",
    "data": {"path": "data/digits", "image_size": 32},
    "model": {"patch_size": 8, "depth": 2},
    "space": {"widths": [{"width": 32, "heads": 2}, {"width": 16, "heads": 2}]},
    "base": {
        "max_concurrent": 1,
        "workers": {"num_workers": 1, "cpus_per_worker": 0.9},
        "train": {"epochs": 3, "batch_size": 32, "lr": 0.003, "warmup_epochs": 0.5},
    },
    "calibrate": {"counts": 4, "images": 64},
    "screen": {"schedules": 24, "generations": 2, "actors": 2, "cpus_per_actor": 0.9},
    "finals": {
        "trials": 4,
        "seeds": 2,
        "max_concurrent": 1,
        "workers": {"num_workers": 1, "cpus_per_worker": 0.9},
        "grace_epochs": 1,
        "noise_margin": 1e-6,
        "train": {"epochs": 3, "batch_size": 32, "lr": 0.001, "warmup_epochs": 0.5},
    },
}


class Place:
    """A folder with data, the undisturbed search in `calm`, and the killed ones in `round-N`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notes_path = root / "notes.json"
        self.notes = (
            json.loads(self.notes_path.read_text())
            if self.notes_path.exists()
            else {"kills": [], "rounds": 0, "seconds": 0.0}
        )

    def note(self) -> None:
        aside = self.notes_path.with_suffix(".new")
        aside.write_text(json.dumps(self.notes, indent=1))
        aside.replace(self.notes_path)

    def command(self, *words: str) -> list[str]:
        return [TOKENPOOL, *words]

    def start(self, storage: str, *settings: str) -> subprocess.Popen[bytes]:
        log = (self.root / f"{storage}.log").open("ab")
        with log:
            return subprocess.Popen(
                self.command("search", "chaos.yaml", "--set", f"storage={storage}", *settings),
                cwd=self.root,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def prepare(self) -> None:
        """The data, unless it is there."""
        if not (self.root / "data").exists():
            subprocess.run(
                self.command("prepare", "digits", "data/digits"),
                cwd=self.root,
                check=True,
                capture_output=True,
            )

    def run(self, storage: str, timeout: float = 1800) -> float:
        """To the end; seconds it took."""
        begun = time.monotonic()
        driver = self.start(storage)
        assert driver.wait(timeout=timeout) == 0, (self.root / f"{storage}.log").read_text()[-3000:]
        return time.monotonic() - begun

    def ledger(self, storage: str) -> Path:
        return self.root / Search(storage, "chaos").ledger

    def stage(self, storage: str) -> str:
        """What the search was at by its ledger."""
        state = fold("chaos", read_events(self.ledger(storage)))
        if not state.exists:
            return "start"
        return next((s for s in STAGES if state.stages[s] != "done"), "complete")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    kept = os.environ.get("TOKENPOOL_CHAOS_DIR")
    root = Path(kept) if kept else tmp_path_factory.mktemp("chaos")
    root.mkdir(parents=True, exist_ok=True)
    place = Place(root)
    (root / "chaos.yaml").write_text(yaml.safe_dump(CONFIG))
    place.prepare()
    return place


def test_killed_at_random_moments_the_search_ends_as_if_undisturbed(place, told):
    end = time.monotonic() + SECONDS
    notes = place.notes
    if not notes["seconds"]:
        notes["seconds"] = place.run("calm")
        place.note()
    families = []
    while len(notes["kills"]) < KILLS:
        if time.monotonic() > end:
            assert outlived(families) == [], "processes outlived their driver"
            pytest.skip(f"{len(notes['kills'])} of {KILLS} kills done: to be gone on with")
        storage = f"round-{notes['rounds']}"
        families += kill_once(place, storage)
        if place.stage(storage) == "complete":
            check(place, storage)
            notes["rounds"] += 1
        place.note()
    storage = f"round-{notes['rounds']}"
    if place.ledger(storage).exists():
        place.run(storage)
        check(place, storage)
    assert outlived(families) == [], "processes outlived their driver"
    recovered = max((kill.get("recovered", 0.0) for kill in notes["kills"]), default=0.0)
    told("driver killed (SIGKILL) at a random moment", len(notes["kills"]), seconds=recovered)
    for what in ("stage", "amid"):
        counts = dict(Counter(kill[what] for kill in notes["kills"]))
        sys.stdout.write(f"\nkilled {len(notes['kills'])} times: {counts}\n")


def kill_once(place, storage):
    """Starts the search and kills it at the next moment, unless it is complete before that.

    Returns:
        The processes it had started.
    """
    notes = place.notes
    # Killed or complete: each session has its own moment.
    number = notes.setdefault("sessions", 0)
    notes["sessions"] += 1
    generator = np.random.default_rng([SEED, number])
    moment = SHARE * notes["seconds"] * float(generator.random())
    amid = [None, "ledger", None, "checkpoint", None, "MLflow"][number % 6]
    ledger = place.ledger(storage)
    before = ledger.read_bytes() if ledger.exists() else b""
    driver = place.start(storage)
    process = psutil.Process(driver.pid)
    begun, family = time.monotonic(), []
    while driver.poll() is None and time.monotonic() - begun < moment:
        time.sleep(min(0.05, moment))
        if before and ledger.stat().st_size > len(before):
            # From the command that was typed again to its first new record.
            notes["kills"][-1].setdefault("recovered", round(time.monotonic() - begun, 1))
    writes, looked = WRITES[amid](place.root / storage), 0.0
    while driver.poll() is None and not writes():
        if amid == "checkpoint" and time.monotonic() - looked > 1:
            family, looked = process.children(recursive=True), time.monotonic()
    at = time.monotonic() - begun
    if driver.poll() is None:
        os.kill(driver.pid, signal.SIGSTOP)  # right there, and its children are still its own
        kill_all(family)  # whoever writes the checkpoint is among them
        family += process.children(recursive=True)
        if amid == "checkpoint":
            kill_all(family)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        after = ledger.read_bytes() if ledger.exists() else b""
        assert after.startswith(before[: before.rfind(b"\n") + 1]), "what was recorded is gone"
        kill = {"session": number, "round": notes["rounds"], "at": round(at, 2), "amid": amid}
        notes["kills"].append(kill | {"stage": place.stage(storage)})
    else:
        assert driver.returncode == 0, (place.root / f"{storage}.log").read_text()[-3000:]
    events = list(read_events(ledger))
    grew = [step.hypervolume for step in history("chaos", events)]
    assert grew == sorted(grew), "the hypervolume fell"
    return family


def kill_all(processes):
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def at_once(root):
    return lambda: True


def to_the_ledger(root):
    """Whether it has grown since; what is told of a record comes after it."""
    path = Search(root, "chaos").ledger

    def size():
        return path.stat().st_size if path.exists() else 0

    before = size()
    return lambda: size() != before


def to_a_checkpoint(root):
    """Whether there is one that was not there, whole or not."""
    jobs = root / "searches" / "chaos" / "jobs"

    def names():
        return {str(path) for path in jobs.glob("*/epoch-*")}

    before = names()
    return lambda: not names() <= before


def to_mlflow(root):
    """Whether its database is amid a transaction."""
    return (root / "mlflow.db-journal").exists


WRITES = {
    None: at_once,
    "ledger": to_the_ledger,
    "checkpoint": to_a_checkpoint,
    "MLflow": to_mlflow,
}


def check(place, storage):
    """A search that was killed and is complete by now, against the one that was not."""
    calm, killed = (load_state(Search(place.root / s, "chaos")) for s in ("calm", storage))
    events = list(read_events(place.ledger(storage)))
    # No trial is lost or doubled.
    assert {t.model_id: t.status for t in killed.trials.values()} == {
        t.model_id: t.status for t in calm.trials.values()
    }
    for kinds, key in (
        (("trial_created",), "trial_id"),
        (("trial_done", "trial_stopped", "trial_failed"), "trial_id"),
        (("base_done",), "width"),
        (("stage_done",), "stage"),
        (("calibrated",), "width"),
    ):
        counts = Counter(event[key] for event in events if event["event"] in kinds)
        assert set(counts.values()) == {1}, (kinds, counts)
    published = Counter(
        (e["event"], e.get("trial_id", e.get("width")))
        for e in events
        if e["event"] in ("published", "measured")
    )
    assert set(published.values()) == {1}, published
    epochs = Counter((t.model_id, r.epoch) for t in killed.trials.values() for r in t.reports)
    assert set(epochs.values()) == {1}
    # The front is the same, to the bit of every weight.
    assert [row.__dict__ for row in killed.screened] == [row.__dict__ for row in calm.screened]
    assert summary(killed) == summary(calm)
    grew = [step.hypervolume for step in history("chaos", events)]
    assert grew == sorted(grew) and grew[-1] == build_front(calm).hypervolume
    client = MlflowClient(f"sqlite:///{place.root / storage}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    assert all(run.info.status != "RUNNING" for run in runs)
    points = Counter(run.data.tags.get("tokenpool.point") for run in runs)
    expected = [None, *(f"dense-{base.width}" for base in calm.bases), *calm.trials]
    assert points == Counter(expected)


def summary(state):
    """All that is the same in two searches of one seed, however often they were killed."""
    return [
        {
            "id": point.point_id,
            "schedule": point.schedule,
            "gmacs": point.gmacs,
            "minival": point.top1_minival,
            "val": point.top1_val,
            "on_front": point.on_front,
            "status": point.status,
            "weights": [weights(training.checkpoint) for training in point.trainings],
        }
        for point in build_front(state).points
    ]


def weights(checkpoint):
    if checkpoint is None:
        return None
    content = (Path(checkpoint) / "model.safetensors").read_bytes()
    return hashlib.sha256(content).hexdigest()


def outlived(family):
    """Names of processes still there; Ray ends its own, its agents after a minute."""
    _, alive = psutil.wait_procs(family, timeout=180)
    names = [process.name() for process in alive]
    for process in alive:
        process.kill()
    return names
