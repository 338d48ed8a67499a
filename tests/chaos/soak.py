"""A search in which something breaks every half minute, against the same search left in peace.

    python tests/chaos/soak.py DIRECTORY --trials 200 --minutes 30 --every 30 --out chaos-soak.json

Faults come from a seed: workers killed and stopped, the job's controller killed, the driver killed
and told to end (the same command is then typed again), all processes killed at once, the machine
suspended. After `--minutes` nothing breaks any more, and what is left is trained two at a time. The
place is kept: what is done there already is not done again.
"""

import argparse
import contextlib
import datetime
import json
import platform
import signal
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import yaml
from test_kills import CONFIG, Place, check, kill_all

from pipelines.search.ledger import read_events
from pipelines.search.state import load_state
from pipelines.storage.search_files import Search

STALL = 20.0  # seconds without a sign of life
STORM = "storm"


def named(family, name):
    """Those of a driver's processes that Ray calls so."""
    found = []
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            if (process.cmdline() or [""])[0].startswith(f"ray::{name}"):
                found.append(process)
    return found


class Storm:
    """The driver, and what happens to it and its processes.

    Args:
        place: where it runs.
        seed: of the faults.
    """

    def __init__(self, place, seed):
        self.place, self.generator = place, np.random.default_rng(seed)
        self.faults = Counter()
        self.driver = None
        self.seconds, self.done = 0.0, 0

    def family(self):
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.driver.pid).children(recursive=True)
        return []

    def strike(self):
        """One fault, of a kind that there is something for."""
        family = self.family()
        workers = named(family, "RayTrainWorker")
        kinds = ["driver killed", "everything killed", "driver told to end", "machine suspended"]
        if workers:
            kinds += ["worker killed", "worker killed", "worker stopped", "controller killed"]
        kind = str(self.generator.choice(kinds))
        if kind == "worker killed":
            workers[0].kill()
        elif kind == "worker stopped":
            workers[0].suspend()
        elif kind == "controller killed":
            kill_all(named(family, "TrainController"))
        elif kind == "driver killed":
            self.driver.kill()
        elif kind == "driver told to end":
            self.driver.send_signal(signal.SIGTERM)
        elif kind == "everything killed":
            kill_all([psutil.Process(self.driver.pid), *family])
        else:
            self.suspend([psutil.Process(self.driver.pid), *family])
        self.faults[kind] += 1
        sys.stderr.write(f"{self.seconds:.0f} s: {kind}\n")

    def suspend(self, processes):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        time.sleep(5)
        for process in reversed(processes):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def run(self, minutes, every):
        """Breaks things, at most until the search is complete; then lets it end.

        Args:
            minutes: of faults.
            every: seconds between two of them.
        """
        begun = last = time.monotonic()
        while self.seconds < 60 * minutes and self.goes_on():
            time.sleep(1)
            now = time.monotonic()
            self.seconds = now - begun
            if now - last >= every and self.driver.poll() is None:
                self.strike()
                last = now
        self.done = len(ends(self.place, STORM))
        self.driver.send_signal(signal.SIGTERM)
        self.driver.wait(timeout=300)
        while self.goes_on("--set", "finals.max_concurrent=2"):
            time.sleep(1)

    def goes_on(self, *settings):
        """Types the command again where it has ended; whether there was anything left to do."""
        if self.driver is None or self.driver.poll() is not None:
            if self.place.stage(STORM) == "complete":
                return False
            self.driver = self.place.start(STORM, *settings)
        return True


def ends(place, storage):
    """When each trial was done: seconds after the first event."""
    events = list(read_events(place.ledger(storage)))
    return [e["time"] - events[0]["time"] for e in events if e["event"] == "trial_done"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    root = asked.directory.resolve()
    root.mkdir(parents=True, exist_ok=True)
    place = Place(root)
    values = json.loads(json.dumps(CONFIG))
    values["stall_minutes"] = STALL / 60
    # So small a space has few schedules worth a trial: constant keep-rates make up the number, in
    # two widths, each under as many seeds.
    rates = [0.9, 0.7, 0.5, 0.35]
    values["finals"] |= {"constant_rates": rates, "seeds": max(1, asked.trials // 8)}
    for stage in ("base", "finals"):
        values[stage]["train"]["epochs"] = 2
        values[stage]["workers"]["max_failures"] = 10
    (root / "chaos.yaml").write_text(yaml.safe_dump(values))
    place.prepare()
    if not place.notes["seconds"]:
        place.notes["seconds"] = place.run("calm", timeout=7200)
        place.note()
    storm = Storm(place, asked.seed)
    storm.run(asked.minutes, asked.every)
    check(place, STORM)
    calm, state = (load_state(Search(root / storage, "chaos")) for storage in ("calm", STORM))
    # What the undisturbed search took for as many trials as were done amid the faults.
    effective = ends(place, "calm")[storm.done - 1] if storm.done else 0.0
    restarts = [e for e in read_events(place.ledger(STORM)) if e["event"] == "restarted"]
    found = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "hardware": f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores",
        "load": [round(x, 1) for x in psutil.getloadavg()],
        "versions": {name: version(name) for name in ("ray", "torch", "deepspeed", "mlflow")},
        "trials": len(state.trials),
        "finals": sum(not trial.is_companion for trial in state.trials.values()),
        "status": dict(Counter(trial.status for trial in state.trials.values())),
        "faults": dict(storm.faults),
        "restarts": len(restarts),
        "seconds": {
            "undisturbed": round(place.notes["seconds"]), "of_faults": round(storm.seconds)
        },
        "done_amid_faults": storm.done,
        "device_seconds": {
            "undisturbed": round(calm.device_seconds), "disturbed": round(state.device_seconds)
        },
        "effective_share": round(effective / storm.seconds, 3),
        "seconds_lost_per_fault": round(
            (storm.seconds - effective) / max(1, storm.faults.total()), 1
        ),
        "result": "complete; trials, screening scores, front and weights (sha256) are those of the "
        "undisturbed run",
    }  # fmt: skip
    text = json.dumps(found, indent=1)
    sys.stdout.write(text + "\n")
    if asked.out is not None:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
