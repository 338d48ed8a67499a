"""One training job without Ray: `torchrun --nproc-per-node N -m pipelines.train CONFIG.yaml`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from pipelines.config import TrainRunConfig, load_as
from pipelines.console import use_own_scripts
from pipelines.errors import UserError
from pipelines.train.run_config import job_of


def main() -> int:
    """Trains what the YAML file describes, as `tokenpool train` would under Ray.

    Settings can be overridden by further arguments, `train.epochs=3`. The number of workers is
    torchrun's. Rank 0 prints the last report as JSON.
    """
    started = time.monotonic()
    if len(sys.argv) < 2:
        sys.stderr.write(
            "usage: torchrun --nproc-per-node N -m pipelines.train CONFIG.yaml [KEY=VALUE ...]\n"
        )
        return 2
    use_own_scripts()
    workers = f"workers.num_workers={os.environ.get('WORLD_SIZE', '1')}"
    try:
        config = load_as(TrainRunConfig, Path(sys.argv[1]), [*sys.argv[2:], workers])
        job = job_of(config)
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
