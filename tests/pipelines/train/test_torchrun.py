"""The job without Ray, against a plain PyTorch loop and against itself after a kill."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.nn.functional as F
import yaml
from gang import run_gang, train_as_torchrun_does
from thinning import fast

import tokenpool as tp
from pipelines.config import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    TrainConfig,
    TrainRunConfig,
    WidthConfig,
    WorkersConfig,
)
from pipelines.data.augment import normalize
from pipelines.data.loader import make_loader
from pipelines.data.manifest import load_manifest
from pipelines.train.engine import learning_rate, make_optimizer
from pipelines.train.model import build_model
from pipelines.train.spec import job_of


def make_job(digits, storage, num_workers, **train):
    settings = {"epochs": 2, "batch_size": 64, "lr": 1e-3, "warmup_epochs": 0.5, **train}
    return job_of(
        TrainRunConfig(
            name="job",
            storage=storage,
            data=DataConfig(path=digits, image_size=32),
            model=ModelConfig(patch_size=8, depth=2),
            width=WidthConfig(width=32, heads=2),
            schedule=(8, 4),
            train=TrainConfig(**settings),
            workers=WorkersConfig(num_workers=num_workers),
            seed=3,
        )
    )


def written(job, tmp_path, **changes):
    """The job as the YAML of `tokenpool train`."""
    file = tmp_path / f"{job.storage.parent.name}.yaml"
    width = {"width": job.model.width, "heads": job.model.heads}
    values = {
        "name": job.job_id,
        "seed": job.seed,
        "storage": str(job.storage.parent),
        "data": job.data.model_dump(mode="json"),
        "model": {"patch_size": job.model.patch_size, "depth": job.model.depth},
        "width": width,
        "schedule": list(job.schedule),
        "train": job.train.model_dump(mode="json"),
    }
    file.write_text(yaml.safe_dump(values | changes))
    return file


def launch(job, tmp_path):
    """The job as a user types it: torchrun over its YAML."""
    command = [
        str(Path(sys.executable).parent / "torchrun"),
        "--standalone",
        f"--nproc-per-node={job.workers.num_workers}",
        "-m",
        "pipelines.train",
        str(written(job, tmp_path)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def run(job, tmp_path):
    process = launch(job, tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.strip().splitlines()[-1])


def weights(job, epoch):
    return tp.load(job.directory / f"epoch-{epoch:04d}" / "model").state_dict()


def plain_training(job):
    """The same training without DeepSpeed, checkpoints or ranks: one process, global batches."""
    train, manifest = job.train, load_manifest(job.data.path)
    torch.manual_seed(job.seed)
    model = build_model(job)
    optimizer = make_optimizer(model, train)
    loader = make_loader(
        job.data.path,
        "train",
        batch_size=train.batch_size,
        train=True,
        seed=job.seed,
        image_size=32,
    )
    losses = []
    steps = len(loader)
    try:
        for epoch in range(train.epochs):
            loader.set_epoch(epoch)
            total = 0.0
            for index, (images, labels) in enumerate(loader):
                for group in optimizer.param_groups:
                    group["lr"] = group["lr_scale"] * learning_rate(
                        epoch * steps + index,
                        num_steps=train.epochs * steps,
                        warmup_steps=round(train.warmup_epochs * steps),
                        peak=train.lr,
                        low=train.min_lr,
                    )
                logits = model(normalize(images, manifest.mean, manifest.std))
                loss = F.cross_entropy(logits, labels)
                optimizer.zero_grad()
                loss.backward()
                if train.clip_grad:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip_grad)
                optimizer.step()
                total += loss.item()
            losses.append(total / steps)
    finally:
        loader.close()
    return model.state_dict(), losses


def test_two_workers_train_what_a_plain_loop_trains(digits, tmp_path):
    # In two micro-batches each and with rates by depth; the plain loop takes whole batches.
    job = make_job(digits, tmp_path / "jobs", 2, accumulate=2, layer_decay=0.8)
    report = run(job, tmp_path)
    expected, losses = plain_training(job)
    assert report["loss"] == pytest.approx(losses[-1], abs=2e-4)
    for name, value in weights(job, 2).items():
        torch.testing.assert_close(value, expected[name], atol=2e-3, rtol=0, msg=name)
    assert report["top1_minival"] > 0.15  # chance is 0.1: two epochs of a toy


@pytest.mark.slow  # the compiler takes a minute
def test_a_compiled_model_trains_what_a_plain_loop_trains(digits, tmp_path):
    job = make_job(digits, tmp_path / "jobs", 1, epochs=1, warmup_epochs=0.2, compile=True)
    report = run(job, tmp_path)
    expected, losses = plain_training(job)
    assert report["loss"] == pytest.approx(losses[-1], abs=2e-4)
    for name, value in weights(job, 1).items():
        torch.testing.assert_close(value, expected[name], atol=2e-3, rtol=0, msg=name)


def curve(job):
    rows = [json.loads(r) for r in (job.directory / "reports.jsonl").read_text().splitlines()]
    names = ("epoch", "loss", "lr", "top1_minival", "top1_minival_raw", "loss_minival_raw")
    return [[row[name] for name in names] for row in rows]


def kill_all(process):
    # Workers are in sessions of their own: each is named before any is killed.
    for victim in [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    process.communicate()


@pytest.mark.fault("job killed within an epoch (torchrun)")
@pytest.mark.parametrize("with_fewer", fast(1, [False, True]))
def test_a_job_killed_within_an_epoch_goes_on_bit_for_bit(digits, tmp_path, with_fewer):
    augment = AugmentConfig(rotate=5, translate=0.05)
    settings = {"epochs": 3, "ema_decay": 0.9, "drop_path": 0.1, "augment": augment}
    settings |= {"accumulate": 2, "checkpoint_every_steps": 5}
    straight = make_job(digits, tmp_path / "straight", 2, **settings)
    killed = make_job(digits, tmp_path / "killed", 2, **settings)
    assert run_gang(2, train_as_torchrun_does, written(straight, tmp_path)) == [0, 0]
    process = launch(killed, tmp_path)
    deadline = time.monotonic() + 200
    # 17 steps an epoch: after 20 of them, and 3 within the second epoch.
    while not list(killed.directory.glob("epoch-0001-step-000003")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    kill_all(process)
    assert not (killed.directory / "epoch-0003").exists(), "it was too fast to be killed"
    fewer = make_job(digits, tmp_path / "fewer", 1, **settings)
    if with_fewer:
        shutil.copytree(killed.directory, fewer.directory)

    run(killed, tmp_path)
    ours, theirs = weights(killed, 3), weights(straight, 3)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    raw, measure = (optimizer_state(job, 3) for job in (killed, straight))
    assert len(raw) > 50 and all(map(torch.equal, raw, measure))
    assert curve(killed) == curve(straight)
    assert killed.directory.joinpath("best", "state.json").is_file()

    if with_fewer:
        # One worker takes on what two began: the same batches, so nearly the same numbers. Dropped
        # paths differ, which the ranks draw for themselves.
        report = run(fewer, tmp_path)
        assert report["loss"] == pytest.approx(curve(straight)[-1][1], abs=0.05)
        assert [row[0] for row in curve(fewer)] == [1, 2, 3]


def optimizer_state(job, epoch):
    """The raw weights and AdamW's state, as a list of tensors."""
    file = job.directory / f"epoch-{epoch:04d}" / "engine" / "mp_rank_00_model_states.pt"
    state = torch.load(file, weights_only=False)
    moments = state["optimizer"]["state"].values()
    return [*state["module"].values(), *(value for entry in moments for value in entry.values())]


def test_a_schedule_that_grows_ends_in_one_line(digits, tmp_path):
    """As a worker says it; before and behind it stands torchrun's own report."""
    job = make_job(digits, tmp_path / "jobs", 1)
    command = [sys.executable, "-m", "pipelines.train", written(job, tmp_path, schedule=[4, 8])]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stderr == (
        "schedule: layer 2 keeps 8 tokens but layer 1 keeps only 4: a schedule never grows\n"
    )
    assert not job.directory.exists()
