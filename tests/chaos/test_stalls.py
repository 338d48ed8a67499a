"""What hangs or dies is noticed, named in one line and done again: real commands and processes.

Each job's outcome is compared with that of the same job undisturbed, to the bit of every weight.
"""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import yaml
from commands import Command

from pipelines.search.ledger import read_events
from pipelines.search.state import load_state
from pipelines.storage.search_files import Search
from pipelines.train.job_folder import PathFolder
from pipelines.trials.last_signs import read_last_signs

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3000)]

STEPS = 17  # of an epoch, 1,151 images in batches of 64
SECONDS = 15.0  # without a sign of life
TRAIN = {
    "name": "job",
    "storage": "runs",
    "stall_minutes": SECONDS / 60,
    "data": {"path": "digits", "image_size": 32, "loader": "torchvision"},
    "model": {"patch_size": 8, "depth": 2},
    "width": {"width": 32, "heads": 2},
    "train": {
        "epochs": 14,
        "batch_size": 64,
        "lr": 0.003,
        "warmup_epochs": 0.5,
        "checkpoint_every_steps": 5,
    },
    "workers": {"num_workers": 2, "cpus_per_worker": 0.9},
}
SEARCH = {
    "name": "s",
    "storage": "runs",
    "stall_minutes": SECONDS / 60,
    "data": {"path": "digits", "image_size": 32, "loader": "torchvision"},
    "model": {"patch_size": 8, "depth": 2},
    "space": {"widths": [{"width": 32, "heads": 2}]},
    "base": {
        "workers": {"cpus_per_worker": 0.9},
        "train": {"epochs": 3, "batch_size": 64, "lr": 0.003, "warmup_epochs": 0.5},
    },
    "calibrate": {"counts": 8, "images": 64},
    "screen": {"schedules": 24, "generations": 4, "actors": 2, "cpus_per_actor": 0.9},
    "finals": {"workers": {"cpus_per_worker": 0.9}, "train": {"epochs": 6, "batch_size": 64}},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("stalls")
    (root / "train.yaml").write_text(yaml.safe_dump(TRAIN))
    (root / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    assert Command("prepare", "digits", "digits", cwd=root).end() == 0
    (root / "hooks").mkdir()
    shutil.copy(Path(__file__).with_name("hooks.py"), root / "hooks" / "sitecustomize.py")
    return root


@pytest.fixture(scope="module")
def calm(place):
    command = Command("train", "train.yaml", "--set", "name=calm", cwd=place)
    assert command.end() == 0, command.text
    assert "no sign of life" not in command.text
    return outcome(place, "calm")


@pytest.fixture
def begin(place):
    begun = []

    def start(*words, **env):
        path = os.pathsep.join([str(place / "hooks"), os.environ.get("PYTHONPATH", "")])
        begun.append(Command(*words, cwd=place, env={"PYTHONPATH": path, **env}))
        return begun[-1]

    yield start
    for command in begun:
        command.kill()


def outcome(place, name):
    """Epochs and the last weights of a job."""
    folder = place / "runs" / "trains" / name
    content = (folder / "epoch-0014" / "model" / "model.safetensors").read_bytes()
    epochs = [report.epoch for report in PathFolder(folder).reports()]
    return epochs, hashlib.sha256(content).hexdigest()


def newest_step(place, name):
    """Of the newest checkpoint of a job."""
    newest = max((place / "runs" / "trains" / name).glob("epoch-*")).name
    epoch, step = re.fullmatch(r"epoch-(\d+)(?:-step-(\d+))?", newest).groups()
    return int(epoch) * STEPS + int(step or 0)


LINE = (
    r"^(\w+) rank (\d) on (\S+) \(pid (\d+)\): no sign of life for \d+ s "
    r"\(last step (\d+), (.*)\): goes on from its last checkpoint \(restart 1 of 3\)$"
)


def check_line(place, command, name, rank, doing):
    """The one line there is; how many steps are done again."""
    job, said, host, pid, step, how = command.wait_for(LINE).groups()
    lost = int(step) - newest_step(place, name)
    assert (job, int(said), how) == (name, rank, doing)
    assert host == os.uname().nodename and not psutil.pid_exists(int(pid))
    assert 0 <= lost <= 5
    return lost


def finish(command):
    assert command.end() == 0, command.text
    assert len(re.findall("no sign of life", command.text)) == 1
    assert "Traceback" not in command.text


def recovered(command):
    """Seconds from the line to the first epoch after it."""
    line = command.when("no sign of life")
    return next(at for at, text in command.lines if at > line and "epoch" in text) - line


def test_a_controller_that_is_killed(place, calm, begin, told):
    """Its workers die with it; what Ray had reserved for them is given back."""
    command = begin("train", "train.yaml", "--set", "name=headless")
    command.wait_for("epoch 4/")
    (victim,) = command.named("TrainController")
    at = time.monotonic()
    victim.kill()
    command.wait_for(r"^headless: .*: goes on from its last checkpoint \(restart 1 of 3\)$")
    assert command.end() == 0, command.text
    assert outcome(place, "headless") == calm and "Traceback" not in command.text
    first = next(when for when, text in command.lines if when > at and text.startswith("epoch"))
    told("a job's controller killed", seconds=first - at)


def test_all_workers_of_a_job_killed_at_once(place, calm, begin, told):
    command = begin("train", "train.yaml", "--set", "name=bereft")
    command.wait_for("epoch 4/")
    victims = command.named("RayTrainWorker")
    assert len(victims) == 2
    signs = read_last_signs(place / "runs" / "trains" / "bereft")
    for victim in victims:
        victim.suspend()  # so that none is there to see another die
    lost = max(sign.step or 0 for sign in signs) - newest_step(place, "bereft")
    at = time.monotonic()
    for victim in victims:
        victim.kill()
    command.wait_for(r"^bereft: .*: goes on from its last checkpoint \(restart 1 of 3\)$")
    assert command.end() == 0, command.text
    assert command.text.count("(restart") == 1 and "Traceback" not in command.text
    assert not [victim for victim in victims if victim.is_running()]
    assert lost <= 5 and outcome(place, "bereft") == calm
    first = next(when for when, text in command.lines if when > at and text.startswith("epoch"))
    told("all workers of a job killed at once", steps_lost=max(0, lost), seconds=first - at)


def test_a_worker_that_is_stopped(place, calm, begin, told):
    command = begin("train", "train.yaml", "--set", "name=stopped")
    command.wait_for("epoch 4/")
    _, victim = command.named("RayTrainWorker")
    victim.suspend()
    time.sleep(1)
    assert victim.status() == psutil.STATUS_STOPPED
    job, _, host, pid, step, how = command.wait_for(LINE).groups()
    assert int(pid) == victim.pid and how == "its process does not answer"
    lost = int(step) - newest_step(place, "stopped")
    assert 0 <= lost <= 5 and host == os.uname().nodename and job == "stopped"
    finish(command)
    assert not psutil.pid_exists(victim.pid)
    assert outcome(place, "stopped") == calm
    told("worker stopped (SIGSTOP)", steps_lost=lost, seconds=SECONDS + recovered(command))


def test_a_data_thread_that_is_stuck(place, calm, begin, told):
    stick = place / "stick"
    command = begin("train", "train.yaml", "--set", "name=stuck", TOKENPOOL_STICK=str(stick))
    command.wait_for("epoch 4/")
    stick.touch()
    lost = check_line(place, command, "stuck", 1, "waiting for data")
    assert not stick.exists()  # a worker has taken the fault
    finish(command)
    assert outcome(place, "stuck") == calm
    told("data thread of one rank stuck", steps_lost=lost, seconds=SECONDS + recovered(command))


def test_a_collective_that_hangs(place, calm, begin, told):
    """One rank waits in it for what nobody sends, and the other, which is as far, for that rank."""
    stick = place / "stick"
    settings = {"TOKENPOOL_STICK": str(stick), "TOKENPOOL_STICK_AT": "collective"}
    command = begin("train", "train.yaml", "--set", "name=hung", **settings)
    command.wait_for("epoch 4/")
    stick.touch()
    rank = r"hung rank {} on (\S+) \(pid (\d+)\): no sign of life for \d+ s "
    rank += r"\(last step (\d+), computing a step\)"
    again = r": goes on from its last checkpoint \(restart 1 of 3\)"
    line = command.wait_for(f"^{rank.format(0)}; {rank.format(1)}{again}$")
    assert not stick.exists() and line[3] == line[6]
    assert not psutil.pid_exists(int(line[2])) and not psutil.pid_exists(int(line[5]))
    lost = int(line[3]) - newest_step(place, "hung")
    assert 0 <= lost <= 5 and command.end() == 0, command.text
    assert command.text.count("(restart") == 1 and "Traceback" not in command.text
    assert outcome(place, "hung") == calm
    told("collective that hangs", steps_lost=lost, seconds=SECONDS + recovered(command))


def test_a_bug_amid_a_training_is_said_at_once_with_its_place(place, begin, told):
    stick = place / "stick"
    settings = {"TOKENPOOL_STICK": str(stick), "TOKENPOOL_STICK_AT": "bug"}
    command = begin("train", "train.yaml", "--set", "name=buggy", **settings)
    command.wait_for("epoch 2/")
    stick.touch()
    assert command.end() == 1 and not stick.exists()
    said = re.findall(r"ValueError: k is 0 \((\S+), line (\d+)\)", command.text)
    assert said and Path(said[0][0]) == place / "hooks" / "sitecustomize.py"
    assert "raise ValueError" in Path(said[0][0]).read_text().splitlines()[int(said[0][1]) - 1]
    assert "restart" not in command.text and "Traceback" not in command.text, command.text
    told("bug in what a worker runs")


def test_a_host_whose_memory_runs_out(place, calm, begin, told):
    """Ray's own monitor ends the worker that has it; the job goes on from its last checkpoint."""
    stick, memory = place / "stick", psutil.virtual_memory()
    # What all else on this machine has, and room for the job itself.
    limit = (memory.total - memory.available + 7e9) / memory.total
    if limit > 0.9:
        pytest.skip("others have this machine's memory")
    settings = {"TOKENPOOL_STICK": str(stick), "TOKENPOOL_STICK_AT": "memory"}
    settings["RAY_memory_usage_threshold"] = f"{limit:.3f}"
    command = begin("train", "train.yaml", "--set", "name=greedy", **settings)
    command.wait_for("epoch 4/")
    stick.touch()
    again = r"goes on from its last checkpoint \(restart 1 of 3\)$"
    command.wait_for(rf"^greedy: out of memory on the host.*: {again}")
    assert not stick.exists() and command.end() == 0, command.text
    assert "Traceback" not in command.text and outcome(place, "greedy") == calm
    told("out of memory on the host")


def test_a_machine_that_is_suspended(place, calm, begin, told):
    command = begin("train", "train.yaml", "--set", "name=suspended")
    command.wait_for("epoch 4/")
    family = command.family()
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
    time.sleep(0.5)
    there = [process for process in family if process.is_running()]
    states = Counter(process.status() for process in there)
    assert states[psutil.STATUS_STOPPED] > 8 and states.keys() <= {"stopped", "zombie"}
    count = len(command.lines)
    time.sleep(3 * SECONDS)
    assert len(command.lines) == count
    for process in reversed(there):
        process.send_signal(signal.SIGCONT)
    assert command.end() == 0, command.text
    assert "restart" not in command.text and "Traceback" not in command.text
    assert outcome(place, "suspended") == calm
    told("machine suspended (SIGSTOP of everything)", steps_lost=0)


def test_scorers_that_hang_or_die(place, begin, told):
    stick = place / "stick"
    slow = {"TOKENPOOL_STICK": str(stick), "TOKENPOOL_SECONDS": "0.5"}
    command = begin("search", "search.yaml", **slow)
    command.wait_for("probes: ")
    scorers = command.named("WatchedScorer")
    assert len(scorers) == 2
    scorers[0].suspend()
    scorers[1].kill()
    dead = command.wait_for(r"^calibrate scorer \d.*: it died: .*: it is replaced, .*$")
    line = command.wait_for(r"^calibrate scorer \d on (\S+) \(pid (\d+)\): no sign of life .*$")
    assert dead[0] != line[0]
    assert int(line[2]) == scorers[0].pid and "does not answer" in line[0]
    assert line[0].endswith("it is replaced, and its work done again")
    command.wait_for("schedules scored: ")
    stick.touch()
    line = command.wait_for(r"^screen scorer \d on (\S+) \(pid (\d+)\): no sign of life .*$")
    assert "evaluating" in line[0] and not stick.exists()
    command.wait_for("== 5/8")
    assert "Traceback" not in command.text
    state = load_state(Search(place / "runs", "s"))
    # What was done again is there once.
    scored = [(row.candidate.width, row.candidate.schedule) for row in state.screened]
    assert state.calibrations and 12 <= len(scored) == len(set(scored))
    events = list(read_events(Search(place / "runs", "s").ledger))
    assert [e["id"].split("-")[0] for e in events if e["event"] == "restarted"] == ["scorer"] * 3
    assert not psutil.pid_exists(scorers[0].pid)
    told("calibration actor stopped (SIGSTOP)", seconds=SECONDS)
    told("scorer killed, or ended where memory ran out", seconds=0)
    told("scorer stuck in its work", seconds=SECONDS)
