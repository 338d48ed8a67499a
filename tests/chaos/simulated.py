"""The real driver of a search, with pretended work, killed wherever it records something.

All that decides is real: runner, stages, recorder, ledger, scheduler. What is pretended is the
work of a cluster: trainings and scorers whose results follow from what they are given, at once.
So a session takes a tenth of a second instead of half a minute. Each is a child of its own, ended
by a real SIGKILL.

    python tests/chaos/simulated.py DIRECTORY STEP      prints what it found as JSON
"""

import hashlib
import json
import os
import signal
import sys
from collections import Counter
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.console import Console

from cluster.session import Cluster
from pipelines.config import SearchConfig
from pipelines.console import Screen
from pipelines.data.prepare import prepare
from pipelines.results.front import build_front, history
from pipelines.search import ledger as ledgers
from pipelines.search import runner
from pipelines.search.decide import candidate_of, tell
from pipelines.search.ledger import read_events
from pipelines.search.search_space import make_space
from pipelines.search.stages import base_stage as base
from pipelines.search.stages import calibrate_stage as calibrate
from pipelines.search.stages import publish_stage as publish
from pipelines.search.stages import screen_stage as screen
from pipelines.search.stages import supernet_stage as supernet
from pipelines.search.stages import train_models
from pipelines.search.state import SearchState, fold
from pipelines.storage.search_files import Search
from pipelines.train.reports import Report
from pipelines.trials.run_trials import _List
from tune_spaces.policy import Score, Train

# Trials that fail for good, and what of.
FAILS: dict[str, str] = {}
SUPERNET = {
    "enabled": True,
    "schedules": 12,
    "train": {"epochs": 2, "batch_size": 32, "warmup_epochs": 0.5},
}
CONFIG: dict[str, Any] = {
    "name": "s",
    "seed": 3,
    "data": {"image_size": 32},
    "model": {"patch_size": 8, "depth": 3},
    "space": {"widths": [{"width": 32, "heads": 2}, {"width": 16, "heads": 2}]},
    "base": {
        "max_concurrent": 1,
        "train": {"epochs": 2, "batch_size": 32, "warmup_epochs": 0.5},
    },
    "calibrate": {"counts": 3, "images": 64},
    "screen": {"schedules": 24, "generations": 2, "actors": 2, "cpus_per_actor": 0.5},
    "finals": {
        "trials": 5,
        "seeds": 2,
        "constant_rates": [0.5],
        "max_concurrent": 1,
        "grace_epochs": 1,
        "noise_margin": 1e-6,
        "train": {"epochs": 4, "batch_size": 32, "warmup_epochs": 0.5},
    },
}


def drawn(*what: object) -> float:
    """In 0..1, the same for the same things."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


class Scorer:
    """Answers as a scorer's actor would; a task is done when it is asked for."""

    num_images = SimpleNamespace(remote=lambda: 64)

    def __init__(self, weights: str) -> None:
        def divergence(width: int, schedules: list[Any], method: str, images: int) -> list[float]:
            return [0.1 * (48 - sum(s)) + drawn(width, s) for s in schedules]

        def image_scores(width: int, schedules: list[Any], method: str, start: int, stop: int, *_):
            return [
                (
                    np.array(
                        [drawn(weights, width, s, i) + 2 / sum(s) for i in range(start, stop)]
                    ),
                    np.array([drawn(width, s, i, 1) < 0.9 for i in range(start, stop)]),
                )
                for s in schedules
            ]

        def evaluate_saved(path: str, split: str) -> dict[str, float]:
            return {"top1": drawn(Path(path).parent.parent.name, split)}

        for work in (divergence, image_scores, evaluate_saved):
            setattr(self, work.__name__, SimpleNamespace(remote=work))


@contextmanager
def scorers(context: Any, stage: str, count: int, weights: str = "base") -> Any:
    with context.metered(stage, count):
        yield Pool([Scorer(weights) for _ in range(count)])


class Pool:
    def __init__(self, actors: list[Scorer]) -> None:
        self.actors = actors

    def __len__(self) -> int:
        return len(self.actors)

    def ask(self, submit: Any) -> Any:
        return submit(self.actors[0])

    def map(self, submit: Any, tasks: Any) -> Any:
        for number, task in enumerate(tasks):
            yield submit(self.actors[number % len(self.actors)], task)


def run_trials(jobs: Any, *, listener: Any, watch: Any, **_: Any) -> None:
    """Trains one after the other; what an epoch comes to is kept before it is told of."""
    source = _List(jobs) if isinstance(jobs, list) else jobs
    while not watch.ending and source.waiting and (job := source.next()) is not None:
        watch.started(job.job_id)
        job.directory.mkdir(parents=True, exist_ok=True)
        if reason := FAILS.get(job.job_id):
            watch.over(job.job_id)
            listener.failed(job.job_id, reason)
            continue
        done = len(job.folder.reports())
        # A job that had finished unheard tells its last report again.
        for epoch in range(min(done + 1, job.train.epochs), job.train.epochs + 1):
            report = Report(
                epoch=epoch,
                loss=1.0,
                top1_minival=0.5 + 0.4 * drawn(job.job_id, epoch),
                device_seconds=2.0 * epoch,
            )
            job.folder.add_report(report)
            watch.heard(job.job_id)
            if listener.report(job.job_id, report) is False:
                break
        watch.over(job.job_id)
        listener.finished(job.job_id, report, str(job.directory / f"epoch-{epoch}"))
        if watch.now:
            return


def pretend() -> None:
    """Puts the pretended work into the stages' places."""
    publish.ray = SimpleNamespace(get=lambda value: value)  # type: ignore[attr-defined]
    for module in (calibrate, screen, publish, base):
        module.scorers = scorers  # type: ignore[attr-defined]
    train_models.run_trials = run_trials  # type: ignore[assignment]
    timing = SimpleNamespace(remote=lambda path, *_, **__: {"1": drawn(path[-30:])})
    publish.timed_task = lambda *_: (timing, "cpu", 1)  # type: ignore[assignment]
    cluster = Cluster("here", 64.0, 0.0, 1)
    runner.ray_session = lambda *_, **__: nullcontext(cluster)  # type: ignore[assignment]
    # What only looks on, and costs more than all the rest.
    runner.SystemSampler = lambda *_: nullcontext()  # type: ignore[assignment,misc]


def session(storage: Path, changes: dict[str, Any], crash: tuple[int, str] | None) -> bool:
    """One run of the driver in a process of its own.

    Args:
        storage: of the search.
        changes: to the configuration.
        crash: at which record it is killed, and whether `before` it, amid it (`torn`) or `after`.

    Returns:
        Whether it came to its end.
    """
    child = os.fork()
    if child == 0:
        if crash is not None:
            crash_at(*crash)
        values = CONFIG | {"storage": str(storage)} | changes
        values["data"] = {**CONFIG["data"], "path": str(storage.parent / "data")}
        with open(os.devnull, "w") as nowhere:
            runner.run_search(
                SearchConfig.model_validate(values),
                Screen(Console(file=nowhere)),
                follow=lambda: nullcontext(SimpleNamespace(notify=lambda: None)),
                write=lambda *_: None,
            )
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if status:
        raise SystemExit(f"a session failed on {storage} at {crash}")
    return True


def crash_at(number: int, how: str) -> None:
    """Makes this process kill itself at its `number`-th write to the ledger."""
    real, count = ledgers.Ledger.append_all, 0

    def append_all(self: ledgers.Ledger, events: Any) -> Any:
        nonlocal count
        count += 1
        if count < number:
            return real(self, events)
        if how == "torn":
            with self.path.open("ab") as file:
                file.write(b'{"event":"' + str(events[0][0]).encode())
        elif how == "after":
            real(self, events)
        os.kill(os.getpid(), signal.SIGKILL)

    ledgers.Ledger.append_all = append_all  # type: ignore[method-assign]


def state_of(storage: Path) -> SearchState:
    return fold("s", read_events(Search(storage, "s").ledger))


def differs(calm: Path, killed: Path) -> list[str]:
    """What a killed search has otherwise than the undisturbed one, or twice, or less of."""
    one, other = state_of(calm), state_of(killed)
    found = [
        name
        for name in ("bases", "supernets", "calibrations", "planned", "screened", "rescreened")
        if plain(getattr(one, name), calm) != plain(getattr(other, name), killed)
    ]
    found += ["trials"] if plain(one.trials, calm) != plain(other.trials, killed) else []
    found += [] if other.complete else ["complete"]
    rows = list(read_events(Search(killed, "s").ledger))
    once = ("trial_created", "trial_done", "trial_stopped", "trial_paused", "trial_resumed")
    once += ("base_done", "supernet_done")
    once += ("stage_done", "calibrated", "planned", "published", "measured")
    keys = ("trial_id", "width", "stage", "weights")
    counts = Counter(
        (row["event"], *(str(row.get(key)) for key in keys)) for row in rows if row["event"] in once
    )
    found += [f"twice: {event}" for event, count in counts.items() if count > 1]
    grew = [step.hypervolume for step in history("s", rows)]
    found += [] if grew == sorted(grew) else ["hypervolume fell"]
    if build_front(one).hypervolume != build_front(other).hypervolume:
        found.append("hypervolume")
    return found


def replay(storage: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Asks a policy, told of each event of a ledger, what it would have done next.

    Returns:
        How many decisions the ledger has, and those that the policy would not have made.
    """
    values = CONFIG | {"storage": str(storage)} | changes
    values["data"] = {**CONFIG["data"], "path": str(storage.parent / "data")}
    config, state = SearchConfig.model_validate(values), state_of(storage)
    context = SimpleNamespace(
        config=config,
        state=state,
        space=make_space(config, state.num_classes),
        events=lambda: (),
    )
    weights: Any = "supernet" if state.rescreened else "base"
    make = supernet.supernet_policy if weights == "supernet" else screen.base_policy
    policy = make(context)  # type: ignore[arg-type]
    wrong, count = [], 0
    for event in read_events(Search(storage, "s").ledger):
        kind, asked = event["event"], policy.ask()
        if kind == "generation" and event["weights"] == weights:
            rows = [candidate_of(*row) for row in event["rows"]]
            expected = isinstance(asked, Score) and asked.is_new and list(asked.candidates) == rows
        elif kind == "trial_created" and not state.trials[event["trial_id"]].is_companion:
            key = (event["width"], tuple(event["schedule"]), event["method"])
            expected = isinstance(asked, Train) and asked.is_new
            expected = expected and (asked.trial_id, asked.candidate.key) == (
                event["trial_id"],
                key,
            )
        elif kind == "trial_resumed":
            expected = isinstance(asked, Train) and asked.trial_id == event["trial_id"]
        else:
            tell(policy, state, weights, event)
            continue
        count += 1
        wrong += [] if expected else [f"replay: {event['event']} and not {asked}"]
        tell(policy, state, weights, event)
    return {"decisions": count, "wrong": wrong}


def plain(value: Any, storage: Path) -> str:
    """A state's part as text, without where it lies."""
    return str(value).replace(str(storage), "")


def writes(storage: Path) -> int:
    """Lines of a ledger: as many as there were writes, or a few more."""
    return len((Search(storage, "s").ledger).read_text().splitlines())


def main(directory: Path, step: int) -> dict[str, Any]:
    """Kills at every `step`-th record, once in each search; and in three searches at all times."""
    pretend()
    prepare("digits", directory / "data")
    found: dict[str, Any] = {"sessions": 0, "wrong": []}
    for name, changes in (("plain", {}), ("supernet", {"supernet": SUPERNET})):
        calm = directory / f"{name}-calm"
        session(calm, changes, None)
        number = writes(calm)
        found[name] = {"events": number, "trials": len(state_of(calm).trials)}
        assert state_of(calm).complete
        replayed = replay(calm, changes)
        found[name]["decisions"] = replayed["decisions"]
        found["wrong"] += replayed["wrong"]
        # Killed once, at each of its records, then run to its end.
        for at in range(1, number + 1, step if name == "plain" else 2 * step):
            how = ("before", "torn", "after")[at // step % 3]
            killed = directory / f"{name}-{at}"
            over = session(killed, changes, (at, how))
            found["sessions"] += 1 if over else 2
            over or session(killed, changes, None)
            found["wrong"] += [f"{name} {at} {how}: {w}" for w in differs(calm, killed)]
        # Killed again and again, after as many records of each session.
        for how in ("before", "torn", "after") if step == 1 else ("torn",):
            killed = directory / f"{name}-{how}"
            for _ in range(2 * number):
                found["sessions"] += 1
                if session(killed, changes, (4 + step, how)):
                    break
            found["wrong"] += [f"{name} always {how}: {w}" for w in differs(calm, killed)]
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]).resolve(), int(sys.argv[2]))) + "\n")
