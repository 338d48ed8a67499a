"""A training run with its curve kept: `python -m benchmarks.train.curve CONFIG --out OUT.json`.

The job is that of `tokenpool train CONFIG.yaml`. Every epoch's report is kept beside the job, so
that a run in several sittings (`--minutes`) has one curve; at the end the model is scored once on
the validation split, which training never sees.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.machine import command_line, machine_facts
from cluster.session import ray_session
from pipelines.config import TrainRunConfig
from pipelines.config_file import load_as
from pipelines.console import use_own_scripts
from pipelines.data.manifest import load_manifest
from pipelines.train.checkpoint import MODEL_NAME, read_progress
from pipelines.train.reports import Report
from pipelines.train.spec import TrainJob, job_of
from pipelines.trials.run_trials import run_trials

_COLUMNS = ("epoch", "loss", "lr", "top1_minival", "loss_minival", "images_per_s", "device_seconds")


class _Curve:
    """Appends each report to a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.checkpoint: str | None = None

    def report(self, job_id: str, report: Report) -> None:
        row = {key: getattr(report, key) for key in _COLUMNS}
        print(json.dumps(row), flush=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def finished(self, job_id: str, report: Report | None, checkpoint: str | None) -> None:
        self.checkpoint = checkpoint

    def failed(self, job_id: str, reason: str) -> None:
        raise SystemExit(f"{job_id} failed: {reason}")

    def rows(self) -> list[dict[str, Any]]:
        """One per epoch; an epoch that was done twice counts as it was done last."""
        reports = [json.loads(line) for line in self.path.read_text().splitlines()]
        return list(
            {row["epoch"]: row for row in sorted(reports, key=lambda r: r["epoch"])}.values()
        )


def _score(job: TrainJob, model_folder: Path) -> dict[str, Any]:
    """Exact counts on the validation split."""
    import torch

    import tokenpool as tp
    from pipelines.data.preprocessing import data_preprocessing
    from pipelines.data.split_batches import split_batches
    from pipelines.train.evaluate import evaluate

    manifest = load_manifest(job.data.path)
    view = data_preprocessing(manifest, job.data.image_size)
    batches = split_batches(job.data.path, "val", view, 256)
    scores = evaluate(tp.load(model_folder), batches, view, torch.device("cpu"))
    return {"top1_val": scores["top1"], "val_images": manifest.splits["val"].samples}


def main(
    config: Annotated[Path, typer.Argument(help="As for `tokenpool train`.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after so long, with code 3; typed again it goes on.")
    ] = None,
    note: Annotated[str | None, typer.Option(help="Kept with the result.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result there as JSON.")] = None,
) -> None:
    """Train and print."""
    use_own_scripts()
    loaded = load_as(TrainRunConfig, config, overrides)
    job = job_of(loaded)
    curve = _Curve(job.storage / f"{job.job_id}-curve.jsonl")
    if minutes is not None:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.alarm(round(60 * minutes))
    try:
        with ray_session():
            run_trials(
                [job],
                max_concurrent=1,
                listener=curve,
                directory=job.storage,
                name="tune",
            )
    except KeyboardInterrupt:
        _write(loaded, job, curve, job.directory / "best", note, out)
        raise typer.Exit(3) from None
    signal.alarm(0)
    if curve.checkpoint is None:
        raise SystemExit("it ended without a checkpoint")
    _write(loaded, job, curve, Path(curve.checkpoint), note, out)


def _write(
    config: TrainRunConfig,
    job: TrainJob,
    curve: _Curve,
    checkpoint: Path,
    note: str | None,
    out: Path | None,
) -> None:
    """Scores a checkpoint, and writes it with the curve, as far as it goes."""
    manifest, rows = load_manifest(job.data.path), curve.rows()
    result = machine_facts(config.workers.num_workers) | {
        "command": command_line(),
        **({"note": note} if note else {}),
        "finished": len(rows) == config.train.epochs,
        "epoch_scored": read_progress(checkpoint).epoch,
        **_score(job, checkpoint / MODEL_NAME),
        "config": config.model_dump(mode="json", exclude={"storage"}),
        "data": manifest.source,
        "data_options": manifest.options,
        "train_images": manifest.splits["train"].samples,
        "minival_images": manifest.splits["minival"].samples,
        "rows": rows,
    }
    print(json.dumps({key: result[key] for key in ("epoch_scored", "top1_val", "val_images")}))
    if out is not None:
        out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
