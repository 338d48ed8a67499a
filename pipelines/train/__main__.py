"""One training job without Ray: `torchrun --nproc-per-node N -m pipelines.train CONFIG.yaml`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from pipelines.config import TrainRunConfig
from pipelines.config_file import load_as
from pipelines.console import Screen, use_own_scripts
from pipelines.errors import UserError
from pipelines.secrecy.guard import clean_errors, guard_process, redactor
from pipelines.streams import drop_output, take_any_text
from pipelines.train.reports import Report, epoch_line, short_note
from pipelines.train.spec import TrainJob, job_of


def main() -> int:
    """Trains what the YAML file describes, as `tokenpool train` would under Ray.

    Settings can be overridden by further arguments, `train.epochs=3`. The number of workers is
    torchrun's. Rank 0 writes a line for each epoch to stderr, over a bar where that is a terminal,
    and the last report as JSON to stdout.
    """
    started = time.monotonic()
    if len(sys.argv) < 2:
        sys.stderr.write(
            "usage: torchrun --nproc-per-node N -m pipelines.train CONFIG.yaml [KEY=VALUE ...]\n"
        )
        return 2
    take_any_text()
    use_own_scripts()
    guard_process()
    workers = f"workers.num_workers={os.environ.get('WORLD_SIZE', '1')}"
    try:
        config = load_as(TrainRunConfig, Path(sys.argv[1]), [*sys.argv[2:], workers])
        job = job_of(config)
        if job.store is not None:
            raise UserError(
                f"storage {job.store}: without Ray checkpoints go to a folder: set storage to one "
                "that all workers see"
            )
    except UserError as error:
        sys.stderr.write(redactor().text(f"{error}\n"))
        return error.exit_code

    import torch
    import torch.distributed as dist

    from pipelines.train.loop import run_job
    from pipelines.train.reporter import FolderReporter

    if job.workers.gpus_per_worker:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl")
    else:
        dist.init_process_group("gloo")
    rank = dist.get_rank()
    try:
        with clean_errors(), _watcher(job, rank) as tell:
            report = run_job(job, FolderReporter(job.folder, tell), started)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    finally:
        dist.destroy_process_group()
    if rank == 0:
        sys.stdout.write(json.dumps(report.to_json()) + "\n")
    return 0


@contextmanager
def _watcher(job: TrainJob, rank: int) -> Iterator[Callable[[Report], object]]:
    """What shows rank 0's reports; nobody else's."""
    if rank:
        yield lambda report: None
        return
    screen, epochs, done = Screen(Console(stderr=True, highlight=False)), job.train.epochs, 0
    with screen.progress(f"{job.job_id}, epochs", epochs) as bar:

        def tell(report: Report) -> None:
            nonlocal done
            screen.say(epoch_line(report, epochs))
            if screen.console.is_terminal:
                bar.advance(report.epoch - done, note=short_note(report))
            done = report.epoch

        yield tell


if __name__ == "__main__":
    try:
        sys.exit(main())
    finally:
        drop_output()
