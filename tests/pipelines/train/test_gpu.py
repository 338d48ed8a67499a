"""The job on a GPU, against plain PyTorch there and against itself on a CPU."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from gang import run_gang
from test_equivalence import KINDS, STAGES, differences

import tokenpool as tp

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() == 0, reason="there is no CUDA device"),
]


def test_a_gpu_does_what_ddp_and_adamw_do():
    (found,) = run_gang(1, differences, "cuda", accelerator="cuda")
    assert len(found) == len(KINDS) * len(STAGES)
    for gradients, weights, moved in found.values():
        assert gradients < 1e-4
        assert weights < 2e-4  # sums of a GPU have no fixed order
        assert moved > 5e-3


def launch(folder, digits, name, gpus=1.0, **train):
    values = {
        "name": name,
        "seed": 3,
        "storage": str(folder),
        "data": {"path": str(digits), "image_size": 32},
        "model": {"patch_size": 8, "depth": 2},
        "width": {"width": 64, "heads": 2},
        "schedule": [8, 4],
        "workers": {"gpus_per_worker": gpus},
        "train": {"epochs": 4, "batch_size": 64, "lr": 1e-3, "warmup_epochs": 1, **train},
    }
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(values))
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    with (folder / f"{name}.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, *words, "-m", "pipelines.train", str(config)],
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def losses(folder, name):
    lines = (folder / "trains" / name / "reports.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def train(folder, digits, name, **settings):
    assert launch(folder, digits, name, **settings).wait(200) == 0, (
        folder / f"{name}.log"
    ).read_text()[-3000:]
    return losses(folder, name)


def test_a_gpu_trains_what_a_cpu_trains(digits, tmp_path):
    on_gpu = train(tmp_path, digits, "gpu")
    assert on_gpu[-1] < on_gpu[0] - 0.1
    assert train(tmp_path, digits, "cpu", gpus=0.0) == pytest.approx(on_gpu, abs=5e-3)


def test_bf16_and_compiling_change_little(digits, tmp_path):
    plain = train(tmp_path, digits, "plain")
    fast = train(tmp_path, digits, "fast", precision="bf16", compile=True)
    assert fast == pytest.approx(plain, abs=0.05)


def test_a_killed_job_goes_on(digits, tmp_path):
    settings = {"epochs": 6, "ema_decay": 0.9, "drop_path": 0.1}
    straight = train(tmp_path, digits, "straight", **settings)
    process = launch(tmp_path, digits, "killed", **settings)
    deadline = time.monotonic() + 200
    while not (tmp_path / "trains/killed/epoch-0001").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for victim in _left(tmp_path / "killed.yaml"):
        os.kill(victim, signal.SIGKILL)
    assert len(losses(tmp_path, "killed")) < 6, "it was too fast to be killed"
    assert train(tmp_path, digits, "killed", **settings) == pytest.approx(straight, abs=1e-3)
    folders = [tmp_path / "trains" / name / "epoch-0006/model" for name in ("killed", "straight")]
    ours, theirs = (tp.load(folder).state_dict() for folder in folders)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-3, rtol=0, msg=name)


def _left(config):
    """Workers of a killed torchrun: they are in sessions of their own."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        if str(config) in (process.info["cmdline"] or []):
            yield process.pid
