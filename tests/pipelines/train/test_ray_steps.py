"""Checkpoints within an epoch under Ray Train. Slow: it starts Ray."""

import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from test_torchrun import make_job, run

import tokenpool as tp
from pipelines.data.prepare import prepare

TOKENPOOL = str(Path(sys.executable).parent / "tokenpool")


@pytest.mark.slow
@pytest.mark.fault("worker killed (SIGKILL)")
def test_a_killed_worker_comes_back_within_the_epoch_and_changes_no_bit(tmp_path):
    digits = tmp_path / "digits"
    prepare("digits", digits)
    # 8 steps an epoch.
    settings = {"epochs": 2, "batch_size": 128, "ema_decay": 0.9, "checkpoint_every_steps": 3}
    straight = make_job(digits, tmp_path / "straight", 2, **settings)
    run(straight, tmp_path)

    ours = tmp_path / "ours"
    config = {
        "name": "job",
        "seed": straight.seed,
        "storage": str(ours),
        "data": {"path": str(digits), "image_size": 32},
        "model": {"patch_size": 8, "depth": 2},
        "width": {"width": 32, "heads": 2},
        "schedule": list(straight.schedule),
        "train": straight.train.model_dump(mode="json"),
        "workers": {"num_workers": 2, "cpus_per_worker": 0.9},
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(
            [TOKENPOOL, "train", str(tmp_path / "train.yaml")],
            cwd=tmp_path,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        # 9 steps are done: one of the second epoch.
        saved = ours / "trains" / "job" / "epoch-0001-step-000001"
        deadline = time.monotonic() + 240
        while not saved.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        victims = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if any("RayTrainWorker" in word for word in child.cmdline())
        ]
        assert len(victims) == 2
        # Without it there is nothing but the one within the epoch to go on from.
        (ours / "trains" / "job" / "epoch-0001" / "state.json").write_text("{")
        victims[1].kill()
        assert process.wait(timeout=300) == 0, (tmp_path / "out").read_text()[-3000:]
    text = (tmp_path / "out").read_text()
    path = Path(re.findall(r"model in (\S+)", text)[-1])
    assert path.parent.name == "epoch-0002"  # `-r2` if the first epoch had been done again
    model = tp.load(path).state_dict()
    measure = tp.load(straight.directory / "epoch-0002" / "model").state_dict()
    assert all(torch.equal(model[name], measure[name]) for name in measure)
