"""Seconds from `fit()` to a job's first step, and what they go on.

`python -m benchmarks.train.start DATA` runs trials of a tiny job, one after the other, as a search
would: the first fills the caches, the medians of the others count. Each process notes the time at
points of the way, through hooks that this script puts around the job's own functions.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.machine import command_line, machine_facts
from cluster.session import ray_session
from pipelines.config import TrainRunConfig
from pipelines.console import use_own_scripts
from pipelines.train.reports import Report
from pipelines.train.spec import job_of
from pipelines.trials import run_trials as trials

# What a process has reached, in the order of the way; "fit" is `TorchTrainer.fit()`.
_PHASES = {
    "trial": "Tune starts the trial's process",
    "fit": "building the trainer there",
    "born": "Train's controller process and placement group",
    "worker": "the workers' processes: importing Ray and torch, their process group",
    "loop": "the workers' imports: timm, the loop",
    "engine": "loading data's index, building the model",
    "deepspeed": "importing DeepSpeed",
    "ready": "DeepSpeed's engine",
    "batch": "first batch: threads, decoding, augmentation",
    "step": "first step: forward, backward, AdamW",
}


def _traced(file: str) -> Callable[[dict[str, Any]], None]:
    """A Tune trainable like `train_trial` whose processes write down when they are where."""

    def note(event: str, when: float | None = None) -> None:
        import time

        with open(file, "a") as out:
            out.write(json.dumps({"event": event, "time": when or time.time()}) + "\n")

    def worker(job: dict[str, Any]) -> None:
        import psutil

        note("born", psutil.Process().create_time())
        note("worker")
        from pipelines.train.imports import without_collector

        with without_collector():  # as `train_worker` does
            from pipelines.train import loop
            from pipelines.trials import ray_job

        note("loop")
        make_engine = loop.make_engine

        def traced_engine(*args: Any, **kwargs: Any) -> Any:
            note("engine")
            from pipelines.train.imports import import_deepspeed

            import_deepspeed()
            note("deepspeed")
            engine = make_engine(*args, **kwargs)
            note("ready")
            step, steps = engine.step, 0

            def first_batch(*_: Any) -> None:
                handle.remove()
                note("batch")

            def traced_step(*args: Any, **kwargs: Any) -> Any:
                nonlocal steps
                steps += 1
                result = step(*args, **kwargs)
                if steps == 1:
                    note("step")
                return result

            handle = engine.module.register_forward_pre_hook(first_batch)
            engine.step = traced_step
            return engine

        loop.make_engine = traced_engine
        ray_job.train_worker(job)

    def trial(config: dict[str, Any]) -> None:
        note("trial")
        from pipelines.trials import ray_job

        make_trainer = ray_job._make_trainer

        def traced_trainer(job: Any) -> Any:
            ray_job.train_worker = worker
            trainer = make_trainer(job)
            note("fit")
            return trainer

        ray_job._make_trainer = traced_trainer
        ray_job.train_trial({"job": config["job"]})

    return trial


class _Silent:
    def report(self, job_id: str, report: Report) -> None:
        pass

    def finished(self, job_id: str, report: Report | None, checkpoint: str | None) -> None:
        pass

    def failed(self, job_id: str, reason: str) -> None:
        raise SystemExit(f"{job_id} failed: {reason}")


def _once(data: Path, scratch: Path, number: int, num_workers: int) -> dict[str, float]:
    """Seconds from the start of `Tuner.fit()` to each event, at its slowest process."""
    config = TrainRunConfig.model_validate(
        {
            "name": f"start-{number}",
            "storage": scratch,
            "data": {"path": data, "image_size": 32},
            "model": {"patch_size": 4, "depth": 6},
            "width": {"width": 96, "heads": 3},
            "workers": {"num_workers": num_workers, "cpus_per_worker": 0.9},
            "train": {"epochs": 1, "batch_size": 64, "warmup_epochs": 0},
        }
    )
    trace = scratch / f"{number}.jsonl"
    trials.train_trial = _traced(str(trace))  # type: ignore[assignment]
    began = time.time()
    trials.run_trials(
        [job_of(config)],
        max_concurrent=1,
        listener=_Silent(),
        directory=scratch / "tune",
        name=f"start-{number}",
    )
    seen: dict[str, float] = {}
    for line in trace.read_text().splitlines():
        row = json.loads(line)
        seen[row["event"]] = max(seen.get(row["event"], 0.0), row["time"] - began)
    return seen


def main(
    data: Annotated[Path, typer.Argument(help="Prepared digits.")],
    turns: Annotated[int, typer.Option(help="Trials after the first; medians count.")] = 4,
    workers: Annotated[int, typer.Option(help="Processes of each job.")] = 2,
    note: Annotated[str | None, typer.Option(help="Kept with the result.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result there as JSON.")] = None,
) -> None:
    """Measure and print."""
    use_own_scripts()
    runs = []
    with tempfile.TemporaryDirectory(prefix="tokenpool-start-") as folder, ray_session():
        for number in range(turns + 1):
            runs.append(_once(data.resolve(), Path(folder), number, workers))
            print(json.dumps({k: round(v, 2) for k, v in runs[-1].items()}), flush=True)
    warm = runs[1:] or runs
    rows, before = [], dict.fromkeys(range(len(warm)), 0.0)
    for event, what in _PHASES.items():
        seconds = [run[event] - before[i] for i, run in enumerate(warm)]
        before = {i: run[event] for i, run in enumerate(warm)}
        rows.append({"phase": event, "what": what, "s": round(statistics.median(seconds), 2)})
        print(f"{rows[-1]['s']:6.2f} s  {what}")
    result = machine_facts(workers) | {
        "command": command_line(),
        **({"note": note} if note else {}),
        "workers": workers,
        "from_tuner_fit_s": round(statistics.median(run["step"] for run in warm), 2),
        "from_trainer_fit_s": round(statistics.median(r["step"] - r["fit"] for r in warm), 2),
        "first_time_from_trainer_fit_s": round(runs[0]["step"] - runs[0]["fit"], 2),
        "phases": rows,
        "runs": [{k: round(v, 2) for k, v in run.items()} for run in runs],
    }
    keys = ("from_tuner_fit_s", "from_trainer_fit_s", "first_time_from_trainer_fit_s")
    print(json.dumps({key: result[key] for key in keys}))
    if out is not None:
        out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
