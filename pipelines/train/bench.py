"""How fast the training job is: against the bare loop, and against one made of timm's own parts.

All contenders train the same model on the same photographs in the same processes with the same
batch, precision and cores, in turns. The job runs as always; between its epochs, where it would
report, the others take their turns. What each of them does is in its class's docstring.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.config import TrainRunConfig
from pipelines.data.augment import normalize
from pipelines.data.loader import make_loader
from pipelines.data.manifest import load_manifest
from pipelines.errors import UserError
from pipelines.train.imports import import_deepspeed
from pipelines.train.model import build_model
from pipelines.train.optim import make_optimizer
from pipelines.train.run_config import job_of
from pipelines.train.spec import TrainJob

OURS, BARE, TIMM = "tokenpool", "bare DDP loop", "timm's parts"
_MINIVAL = 0.02


@dataclass(frozen=True)
class BenchSpec:
    """What is measured.

    Attributes:
        width, heads, depth, patch_size, image_size: of the model.
        batch_size: images per step, over all workers.
        workers: processes.
        threads: of torch in each; a process decodes with one thread or process more.
        precision: "fp32" or "bf16" (autocast).
        compile: `torch.compile` in all contenders.
        rounds: turns of each contender that count; one more warms up.
        steps: of each turn.
        augment: "none" or "deit"; what our job and timm's loop do to the images.
        gpu: one GPU per worker, NCCL; else CPUs, gloo.
    """

    width: int = 192
    heads: int = 3
    depth: int = 12
    patch_size: int = 16
    image_size: int = 224
    batch_size: int = 32
    workers: int = 2
    threads: int = 1
    loader_threads: int = 1
    precision: str = "fp32"
    compile: bool = False
    rounds: int = 5
    steps: int = 6
    augment: str = "deit"
    gpu: bool = False


def run(spec: BenchSpec, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Makes the photographs, starts the workers, and sums up.

    Raises:
        UserError: what the machine lacks, or a worker failed.
    """
    from pipelines.data.bench_loader import make_photos
    from pipelines.data.options import PrepareOptions
    from pipelines.data.prepare import prepare
    from tokenpool.benchmark import hardware

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
        "ratios": {f"of {name}": rate[OURS] / rate[name] for name in (BARE, TIMM)},
        "spec": asdict(spec),
        **hardware("cuda" if spec.gpu else "cpu"),
        "deepspeed": import_deepspeed().__version__,
    }


def _measure(spec: BenchSpec, scratch: Path) -> list[dict[str, Any]]:
    (scratch / "spec.json").write_text(json.dumps(asdict(spec)))
    words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={spec.workers}"]
    ran = subprocess.run(
        [sys.executable, *words, "-m", "pipelines.train.bench", str(scratch)],
        env={**os.environ, "OMP_NUM_THREADS": str(spec.threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise UserError(f"a worker failed:\n{ran.stderr[-3000:]}", exit_code=1)
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


class _Contender(Protocol):
    name: str

    def epoch(self) -> Iterator[int]:
        """Trains; yields the images of each step of this rank."""


def _autocast(spec: BenchSpec, device: torch.device) -> Any:
    if spec.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _ddp(job: TrainJob, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """The job's model, and the same in DistributedDataParallel."""
    torch.manual_seed(job.seed)
    model = build_model(job).to(device)
    wrapped: nn.Module = DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None
    )
    return model, torch.compile(wrapped) if job.train.compile else wrapped  # type: ignore[return-value]


class _BareLoop:
    """PyTorch alone: images that were decoded and cropped before the clock started, normalised on
    the device; DDP, cross-entropy and AdamW. No augmentation, no average of the weights, no
    clipping."""

    name = BARE

    def __init__(self, spec: BenchSpec, job: TrainJob, device: torch.device) -> None:
        self.spec, self.device = spec, device
        manifest = load_manifest(job.data.path)
        self.mean, self.std = manifest.mean, manifest.std
        loader = make_loader(
            job.data.path, "train", batch_size=spec.batch_size // spec.workers, train=True,
            rank=dist.get_rank(), world_size=spec.workers, image_size=spec.image_size,
            pin_memory=spec.gpu,
        )  # fmt: skip
        self.batches = [(images.clone(), labels.clone()) for images, labels in loader]
        loader.close()
        model, self.model = _ddp(job, device)
        self.optimizer = make_optimizer(model, job.train)

    def epoch(self) -> Iterator[int]:
        self.model.train()
        for images, labels in self.batches:
            inputs = normalize(images.to(self.device, non_blocking=True), self.mean, self.std)
            with _autocast(self.spec, self.device):
                logits = self.model(inputs)
            loss = F.cross_entropy(logits.float(), labels.to(self.device, non_blocking=True))
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            yield len(images)


class _TimmLoop:
    """timm's `create_loader` (its prefetcher normalises on the device), augmentation, Mixup, loss,
    `create_optimizer_v2`, `ModelEmaV3`, clipping, and on a GPU `NativeScaler`, as its train
    script puts them together."""

    name = TIMM

    def __init__(self, spec: BenchSpec, job: TrainJob, photos: Path, device: torch.device) -> None:
        from timm.data import Mixup, create_dataset, create_loader
        from timm.loss import SoftTargetCrossEntropy
        from timm.optim import create_optimizer_v2
        from timm.utils import ModelEmaV3, NativeScaler

        self.spec, self.device, self.clip = spec, device, job.train.clip_grad or None
        deit = spec.augment == "deit"
        self.loader = create_loader(
            create_dataset("", str(photos / "train")),
            (3, spec.image_size, spec.image_size),
            spec.batch_size // spec.workers,
            is_training=True,
            color_jitter=0.3 if deit else 0.0,
            auto_augment="rand-m9-mstd0.5-inc1" if deit else None,
            re_prob=0.25 if deit else 0.0,
            re_mode="pixel",
            num_workers=spec.loader_threads,
            distributed=spec.workers > 1,
            device=device,
            pin_memory=spec.gpu,
            persistent_workers=True,
        )
        self.mixup = (
            Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1,
                  num_classes=job.model.num_classes)
            if deit else None
        )  # fmt: skip
        self.loss: nn.Module = SoftTargetCrossEntropy() if deit else nn.CrossEntropyLoss()
        self.raw, self.model = _ddp(job, device)
        self.optimizer = create_optimizer_v2(
            self.raw, opt="adamw", lr=job.train.lr, weight_decay=job.train.weight_decay
        )
        self.ema = ModelEmaV3(self.raw, decay=job.train.ema_decay)
        self.scaler = NativeScaler(device=device.type) if spec.gpu else None

    def epoch(self) -> Iterator[int]:
        self.model.train()
        for images, labels in self.loader:
            images, labels = images.to(self.device), labels.to(self.device)
            if self.mixup is not None:
                images, labels = self.mixup(images, labels)
            with _autocast(self.spec, self.device):
                loss = self.loss(self.model(images).float(), labels)
            self._update(loss)
            self.ema.update(self.raw)
            yield len(images)

    def _update(self, loss: Tensor) -> None:
        parameters = list(self.raw.parameters())
        if self.scaler is not None:
            self.scaler(loss, self.optimizer, clip_grad=self.clip, parameters=parameters)
        else:
            loss.backward()
            if self.clip:
                nn.utils.clip_grad_norm_(parameters, self.clip)
            self.optimizer.step()
        self.optimizer.zero_grad()


class _Turns:
    """The job's reporter: when an epoch of it is over, the others take their turns."""

    def __init__(self, others: list[_Contender], device: torch.device) -> None:
        self.others, self.device = others, device
        self.turns: dict[str, list[float]] = {OURS: [], **{other.name: [] for other in others}}
        self.shares: dict[str, float] = {}

    def newest_checkpoint(self) -> Path | None:
        return None

    def report(self, metrics: dict[str, Any], *_: Any) -> None:
        self.turns[OURS].append(metrics["images_per_s"])
        self.shares = {k: round(v, 4) for k, v in metrics.items() if k.startswith("share_")}
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
    from pipelines.data.augment_config import PRESETS

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
    others: list[_Contender] = [
        _BareLoop(spec, job, device),
        _TimmLoop(spec, job, scratch / "photos", device),
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
