"""A width that inherits from a wider one against the same width trained from scratch.

    python -m benchmarks.inherit DATA --wide 32x2 --narrow 16x1 --epochs 18 --seeds 3 --out FILE

The jobs are those of a search's base stage: the wide model once, then under each seed the narrow
one from scratch for all epochs, and the narrow one that starts from the wide one's best channels
and heads and learns from it, for a third of them. Typed again it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import command_line, hardware
from cluster.session import ray_session
from pipelines.config import SearchConfig, WidthConfig
from pipelines.console import use_own_scripts
from pipelines.data.manifest import load_manifest
from pipelines.search.job_specs import base_job
from pipelines.train.checkpoint import MODEL_NAME
from pipelines.train.reports import Report
from pipelines.train.spec import TrainJob
from pipelines.trials.run_trials import run_trials


class _Notes:
    """Keeps each job's last report and its checkpoint."""

    def __init__(self) -> None:
        self.last: Report | None = None
        self.checkpoint: str | None = None

    def report(self, job_id: str, report: Report) -> None:
        print(f"{job_id} epoch {report.epoch}: {report.top1_minival:.2%}", flush=True)
        self.last = report

    def finished(self, job_id: str, report: Report | None, checkpoint: str | None) -> None:
        self.last, self.checkpoint = report, checkpoint

    def failed(self, job_id: str, reason: str) -> None:
        raise SystemExit(f"{job_id} failed: {reason}")


def width(text: str) -> dict[str, int]:
    """`32x2`: the width and its heads."""
    value, heads = text.split("x")
    return {"width": int(value), "heads": int(heads)}


def train(job: TrainJob) -> dict[str, Any]:
    """Trains, or goes on; what came of it is kept beside the job."""
    kept = job.storage / f"{job.job_id}.json"
    if not kept.exists():
        notes = _Notes()
        run_trials(
            [job],
            max_concurrent=1,
            listener=notes,
            directory=job.storage / "tune",
            name=job.job_id,
        )
        assert notes.last is not None  # it finished
        row = {
            "epochs": job.train.epochs,
            "top1_minival": notes.last.top1_minival,
            "device_seconds": notes.last.device_seconds,
            "model": f"{notes.checkpoint}/{MODEL_NAME}",
        }
        kept.write_text(json.dumps(row))
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def main() -> None:
    """Trains what is missing, and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path, help="prepared data")
    parser.add_argument("--wide", type=width, default=width("32x2"))
    parser.add_argument("--narrow", type=width, default=width("16x1"))
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--storage", type=Path, default=Path("runs/inherit"))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    use_own_scripts()
    config = SearchConfig.model_validate(
        {
            "name": "inherit",
            "data": {"path": str(asked.data.resolve()), "image_size": asked.image_size},
            "model": {"patch_size": asked.patch, "depth": asked.depth},
            "space": {"widths": [asked.wide, asked.narrow]},
            "base": {
                "inherit": True,
                "workers": {"num_workers": 1, "cpus_per_worker": 0.9},
                "train": {
                    "epochs": asked.epochs, "batch_size": 64, "lr": asked.lr, "min_lr": 1e-5,
                    "warmup_epochs": 2, "augment": {"translate": 0.06, "scale": [0.9, 1.1]},
                },
            },
            "screen": {},
            "finals": {"train": {}},
        }
    )  # fmt: skip
    classes = len(load_manifest(asked.data).classes)
    wide, narrow = config.space.widths

    def job(of: WidthConfig, name: str, seed: int, wider: str | None = None) -> TrainJob:
        made = base_job(config, of, classes, wider)
        storage = asked.storage.resolve()
        return made.model_copy(update={"job_id": name, "storage": storage, "seed": seed})

    asked.storage.mkdir(parents=True, exist_ok=True)
    with ray_session():
        base = train(job(wide, "wide", 0))
        rows = {
            kind: [
                train(job(narrow, f"{kind}-{seed}", seed, base["model"] if heir else None))
                for seed in range(asked.seeds)
            ]
            for kind, heir in (("scratch", False), ("inherits", True))
        }
    result = {
        "command": command_line(),
        **hardware("cpu"),
        "date": time.strftime("%Y-%m-%d"),
        "wide": base | asked.wide,
        "narrow": asked.narrow,
        **rows,
        "summary": {
            kind: {
                "epochs": found[0]["epochs"],
                "top1_minival": statistics.mean(row["top1_minival"] for row in found),
                "device_seconds": statistics.mean(row["device_seconds"] for row in found),
            }
            for kind, found in rows.items()
        },
    }
    print(json.dumps(result["summary"], indent=1))
    if asked.out is not None:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
