"""How fast the training job is: against the bare loop, and against one made of timm's own parts.

All contenders train the same model on the same photographs in the same processes with the same
batch, precision and cores, in turns. The job runs as always; between its epochs, where it would
report, the others take their turns. What each of them does is in its class's docstring.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.machine import hardware
from benchmarks.train.loops import (
    BARE,
    LIMIT,
    TIMM,
    BareLoop,
    BareLoopInMemory,
    BenchSpec,
    Contender,
    TimmLoop,
)
from pipelines.config import TrainRunConfig
from pipelines.errors import UserError
from pipelines.train.reports import Report
from pipelines.train.spec import TrainJob, job_of

OURS = "tokenpool"
_MINIVAL = 0.02


def run(spec: BenchSpec, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Makes the photographs, starts the workers, and sums up.

    Raises:
        UserError: what the machine lacks, or a worker failed.
    """
    from benchmarks.loader.photos import make_photos  # scikit-learn, which workers do without
    from pipelines.data.options import PrepareOptions
    from pipelines.data.prepare import prepare

    if spec.gpu and torch.cuda.device_count() < spec.workers:
        raise UserError(f"{spec.workers} workers need as many GPUs: {torch.cuda.device_count()}")
    count = round(spec.steps * spec.batch_size / (1 - _MINIVAL)) + 8
    with tempfile.TemporaryDirectory(prefix="tokenpool-bench-") as folder:
        scratch = Path(folder)
        progress(f"making and preparing {count} photographs of 500×375")
        make_photos(scratch / "photos", count)
        prepare(
            str(scratch / "photos"),
            scratch / "betons",
            PrepareOptions(minival=_MINIVAL, val=0.0, workers=1),
        )
        progress(f"training in turns, {spec.rounds + 1} rounds")
        rows = _measure(spec, scratch)
    rate = {row["name"]: row["images_per_s"] for row in rows}
    return {
        "rows": rows,
        "ratios": {f"of {name}": rate[OURS] / rate[name] for name in (BARE, LIMIT, TIMM)},
        "spec": asdict(spec),
        **_facts(spec),
    }


def _facts(spec: BenchSpec) -> dict[str, Any]:
    facts = hardware("cuda" if spec.gpu else "cpu")
    processor = facts["hardware"] if spec.gpu else facts["hardware"].rsplit(",", 1)[0]
    cores = f"{spec.workers} workers with {spec.threads} + {spec.loader_threads} threads"
    return {**facts, "hardware": f"{processor}, {os.cpu_count()} cores, {cores}"}


def _measure(spec: BenchSpec, scratch: Path) -> list[dict[str, Any]]:
    (scratch / "spec.json").write_text(json.dumps(asdict(spec)))
    words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={spec.workers}"]
    ran = subprocess.run(
        [sys.executable, *words, "-m", "benchmarks.train.train_speed", str(scratch)],
        env={**os.environ, "OMP_NUM_THREADS": str(spec.threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise UserError(f"a worker failed: {_reasons(ran.stderr)}", exit_code=1)
    turns: dict[str, list[float]] = json.loads((scratch / "turns.json").read_text())
    shares = json.loads((scratch / "shares.json").read_text())
    return [
        {
            "name": name,
            "images_per_s": statistics.median(rates),
            "turns": [round(rate, 2) for rate in rates],
            **({"shares": shares} if name == OURS else {}),
        }
        for name, rates in turns.items()
    ]


def _reasons(stderr: str) -> str:
    """The lines of a torchrun's words that say what went wrong, one or more for each worker."""
    lines = stderr.splitlines()
    telling = [
        line for line in lines if re.match(r"(\[rank\d+\]: )?[\w.]*(Error|Exception)\b", line)
    ]
    return " | ".join(telling or lines[-20:])


class _Turns:
    """The job's reporter: when an epoch of it is over, the others take their turns."""

    drained: Callable[[], str] | None = None

    def __init__(self, others: list[Contender], device: torch.device) -> None:
        self.others, self.device = others, device
        self.turns: dict[str, list[float]] = {OURS: [], **{other.name: [] for other in others}}
        self.shares: dict[str, float] = {}

    def newest_checkpoint(self) -> Path | None:
        return None

    def report(self, report: Report, *_: Any) -> None:
        self.turns[OURS].append(report.images_per_s or 0.0)
        values = report.to_json()
        self.shares = {k: round(v, 4) for k, v in values.items() if k.startswith("share_")}
        for other in self.others:
            self._wait()
            began, images = time.perf_counter(), 0
            for count in other.epoch():
                images += count
            self._wait()
            rate = images * dist.get_world_size() / (time.perf_counter() - began)
            self.turns[other.name].append(rate)

    def save(self, *_: Any) -> None:
        """Nothing is kept."""

    def report_again(self, *_: Any) -> None:
        """Nothing is resumed."""

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        dist.barrier()


def job_for(spec: BenchSpec, scratch: Path) -> TrainJob:
    """The training job that is measured."""
    from pipelines.config.augmentation import PRESETS

    return job_of(
        TrainRunConfig.model_validate(
            {
                "name": "bench",
                "storage": scratch,
                "data": {
                    "path": scratch / "betons",
                    "image_size": spec.image_size,
                    "loader_threads": spec.loader_threads,
                },
                "model": {"patch_size": spec.patch_size, "depth": spec.depth},
                "width": {"width": spec.width, "heads": spec.heads},
                "workers": {
                    "num_workers": spec.workers,
                    "threads_per_worker": spec.threads,
                    "gpus_per_worker": float(spec.gpu),
                },
                "train": {
                    "epochs": spec.rounds + 1,
                    "batch_size": spec.batch_size,
                    "warmup_epochs": 0,
                    "lr": 1e-4,
                    "ema_decay": 0.9999,
                    "precision": spec.precision,
                    "compile": spec.compile,
                    "augment": PRESETS[spec.augment],
                },
            }
        )
    )


def main() -> None:
    """One worker of the measurement, started by torchrun."""
    from pipelines.train.loop import run_job

    scratch = Path(sys.argv[1])
    spec = BenchSpec(**json.loads((scratch / "spec.json").read_text()))
    if spec.gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if spec.gpu else "gloo")
    device = torch.device("cuda", torch.cuda.current_device()) if spec.gpu else torch.device("cpu")
    torch.set_num_threads(spec.threads)
    job = job_for(spec, scratch)
    others: list[Contender] = [
        BareLoop(spec, job, device),
        BareLoopInMemory(spec, job, device),
        TimmLoop(spec, job, scratch / "photos", device),
    ]
    reporter = _Turns(others, device)
    run_job(job, reporter, time.monotonic())
    if dist.get_rank() == 0:
        warm = {name: rates[1:] for name, rates in reporter.turns.items()}
        (scratch / "turns.json").write_text(json.dumps(warm))
        (scratch / "shares.json").write_text(json.dumps(reporter.shares))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
