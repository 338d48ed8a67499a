"""What `tokenpool bench train` compares the job with: bare PyTorch, and timm's own parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.data.augment import DeviceAugment, normalize, step_generator
from pipelines.data.loader import make_loader
from pipelines.data.manifest import load_manifest
from pipelines.train.engine import make_optimizer
from pipelines.train.model import build_model
from pipelines.train.spec import TrainJob

BARE, LIMIT, TIMM = (
    "bare DDP loop",
    "bare DDP loop, images in memory",
    "timm's parts",
)


@dataclass(frozen=True)
class BenchSpec:
    """What is measured.

    Attributes:
        width, heads, depth, patch_size, image_size: of the model.
        batch_size: images per step, over all workers.
        workers: processes.
        threads: of torch in each.
        loader_threads: that decode for each; timm starts as many processes.
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


class Contender(Protocol):
    """A training loop that takes its turns."""

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


class BareLoop:
    """PyTorch alone on the job's own batches, from its loader and its augmentation: DDP,
    cross-entropy and AdamW. No average of the weights, no clipping, nothing measured or kept."""

    name = BARE

    def __init__(self, spec: BenchSpec, job: TrainJob, device: torch.device) -> None:
        self.spec, self.job, self.device = spec, job, device
        manifest = load_manifest(job.data.path)
        self.mean, self.std = manifest.mean, manifest.std
        self.loader = make_loader(
            job.data.path, "train", batch_size=spec.batch_size // spec.workers, train=True,
            rank=dist.get_rank(), world_size=spec.workers, image_size=spec.image_size,
            num_threads=spec.loader_threads, pin_memory=spec.gpu,
        )  # fmt: skip
        self.augment = DeviceAugment(
            job.train.augment, mean=self.mean, std=self.std, num_classes=job.model.num_classes,
            rank=dist.get_rank(), world_size=spec.workers,
        )  # fmt: skip
        model, self.model = _ddp(job, device)
        self.optimizer = make_optimizer(model, job.train)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets on the device."""
        for index, (images, labels) in enumerate(self.loader):
            yield self.augment(
                images.to(self.device, non_blocking=True),
                labels.to(self.device, non_blocking=True),
                step_generator(0, 0, index),
            )

    def epoch(self) -> Iterator[int]:
        self.model.train()
        for images, targets in self.batches():
            with _autocast(self.spec, self.device):
                logits = self.model(images)
            F.cross_entropy(logits.float(), targets).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            yield len(images)


class BareLoopInMemory(BareLoop):
    """The same on images that were decoded and cropped before the clock started, normalised on
    the device and not augmented: what the model alone allows."""

    name = LIMIT

    def __init__(self, spec: BenchSpec, job: TrainJob, device: torch.device) -> None:
        super().__init__(spec, job, device)
        self.decoded = [(images.clone(), labels.clone()) for images, labels in self.loader]
        self.loader.close()

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.decoded:
            inputs = normalize(images.to(self.device, non_blocking=True), self.mean, self.std)
            yield inputs, labels.to(self.device, non_blocking=True)


class TimmLoop:
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
            # Without DeiT's mstd0.5: it draws magnitude 10, which Pillow 13 refuses (0 bits).
            auto_augment="rand-m9-inc1" if deit else None,
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
