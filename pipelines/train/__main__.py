"""One training job without Ray: `torchrun --nproc-per-node N -m pipelines.train JOB.json`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from pydantic import ValidationError

from pipelines.errors import UserError
from pipelines.train.spec import TrainJob


def read_job(path: Path) -> TrainJob:
    """Reads a job's JSON file.

    Raises:
        UserError: the file is missing or does not describe a job.
    """
    try:
        return TrainJob.model_validate_json(path.read_text())
    except OSError:
        raise UserError(f"no job file {path}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{path}: {key}: {problem['msg']}") from None


def main() -> int:
    """Trains the job named on the command line; rank 0 prints the last report as JSON."""
    started = time.monotonic()
    if len(sys.argv) != 2:
        sys.stderr.write("usage: torchrun --nproc-per-node N -m pipelines.train JOB.json\n")
        return 2
    try:
        job = read_job(Path(sys.argv[1]))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
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
        metrics = run_job(job, FolderReporter(job.directory, rank), started)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    finally:
        dist.destroy_process_group()
    if rank == 0:
        sys.stdout.write(json.dumps(metrics) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
