"""The training loop of one job, read top to bottom; it knows nothing of Ray or torchrun.

All randomness is a function of (seed, epoch, step): the order of the images and their crops
(pipelines.data), the augmentation, and dropout, whose generator is seeded anew each step. So a
job that resumes at an epoch goes on exactly as it would have, without saved generator states.
"""

from __future__ import annotations

import logging
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3

import tokenpool as tp
from pipelines.data.augment import DeviceAugment, normalize, step_generator
from pipelines.data.loader import Loader, make_loader
from pipelines.data.manifest import load_manifest
from pipelines.errors import UserError
from pipelines.train.checkpoint import MODEL_NAME, JobProgress, read_progress, seal, write_progress
from pipelines.train.engine import make_engine, set_learning_rate, use_right_accelerator
from pipelines.train.evaluate import evaluate
from pipelines.train.losses import training_loss
from pipelines.train.model import build_model, build_teacher
from pipelines.train.optim import learning_rate
from pipelines.train.reporter import Reporter
from pipelines.train.spec import TrainJob

logger = logging.getLogger(__name__)
ENGINE_NAME = "engine"


def run_job(job: TrainJob, reporter: Reporter, started: float) -> dict[str, Any]:
    """Trains one model, reporting and checkpointing after each epoch.

    Args:
        job: what to train. The process group of its workers must be initialised.
        reporter: where reports and checkpoints go, and what to resume from.
        started: `time.monotonic()` when this process began; the start-up counts as cost.

    Returns:
        The last epoch's report: epoch, loss, lr, top1_minival (fraction), loss_minival,
        images_per_s, device_seconds (workers × seconds over all restarts).

    Raises:
        UserError: the data is not there or does not fit the model; the loss is not finite.
    """
    return _Training(job, reporter, started).run()


class _Training:
    def __init__(self, job: TrainJob, reporter: Reporter, started: float) -> None:
        self.job, self.train, self.reporter, self.started = job, job.train, reporter, started
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        torch.set_num_threads(job.workers.threads_per_worker)
        self.device = use_right_accelerator()
        torch.manual_seed(job.seed)
        manifest = load_manifest(job.data.path)
        if len(manifest.classes) != job.model.num_classes:
            raise UserError(
                f"the job has {job.model.num_classes} classes but {job.data.path} has "
                f"{len(manifest.classes)}"
            )
        self.mean, self.std = manifest.mean, manifest.std
        model = build_model(job).to(self.device)
        self.teacher = build_teacher(job, self.device)
        self.ema = ModelEmaV3(model, decay=self.train.ema_decay) if self.train.ema_decay else None
        if self.train.compile:
            model.compile()  # in place: the names of the weights stay
        self.engine = make_engine(model, self.train, self.world_size)
        self.augment = DeviceAugment(
            self.train.augment,
            mean=manifest.mean,
            std=manifest.std,
            num_classes=job.model.num_classes,
            rank=self.rank,
            world_size=self.world_size,
        )

    def run(self) -> dict[str, Any]:
        train_loader = self._loader("train", train=True)
        minival_loader = self._loader("minival", train=False)
        self.steps_per_epoch = len(train_loader)
        checkpoint, progress = self._resume()
        self.spent, metrics = progress.device_seconds, progress.metrics
        if checkpoint is not None and progress.epoch >= self.train.epochs:
            # It was killed after its last checkpoint and before anybody heard of that.
            self.reporter.report_again(metrics, checkpoint)
        try:
            for epoch in range(progress.epoch, self.train.epochs):
                metrics = self._train_epoch(train_loader, epoch)
                scores = self._evaluate(minival_loader)
                metrics |= {"top1_minival": scores["top1"], "loss_minival": scores["loss"]}
                elapsed = time.monotonic() - self.started
                metrics["device_seconds"] = self.spent + self.world_size * elapsed
                progress = JobProgress(
                    epoch=epoch + 1,
                    num_manifests=self.world_size,
                    device_seconds=metrics["device_seconds"],
                    metrics=metrics,
                )
                self.reporter.report(metrics, epoch + 1, partial(self._write, progress))
        finally:
            train_loader.close()
            minival_loader.close()
        return metrics

    def _loader(self, split: str, *, train: bool) -> Loader:
        return make_loader(
            self.job.data.path,
            split,
            batch_size=self.train.batch_size // self.world_size,
            train=train,
            rank=self.rank,
            world_size=self.world_size,
            seed=self.job.seed,
            num_threads=self.job.data.loader_threads,
            image_size=self.job.model.image_size,
            implementation=self.job.data.loader,
        )

    def _train_epoch(self, loader: Loader, epoch: int) -> dict[str, Any]:
        num_steps = self.train.epochs * self.steps_per_epoch
        warmup_steps = round(self.train.warmup_epochs * self.steps_per_epoch)
        self.engine.train()
        loader.set_epoch(epoch)
        began, loss_sum, lr = time.monotonic(), torch.zeros((), device=self.device), 0.0
        for index, (images, labels) in enumerate(loader):
            lr = learning_rate(
                epoch * self.steps_per_epoch + index,
                num_steps=num_steps,
                warmup_steps=warmup_steps,
                peak=self.train.lr,
                low=self.train.min_lr,
                decay_fraction=(
                    self.train.decay_fraction if self.train.lr_schedule == "wsd" else None
                ),
            )
            set_learning_rate(self.engine, lr)
            loss_sum += self._train_step(images, labels, epoch, index)
        loss = loss_sum / self.steps_per_epoch
        dist.all_reduce(loss)
        mean_loss = loss.item() / self.world_size
        if not math.isfinite(mean_loss):
            raise UserError(
                f"the loss of {self.job.job_id} is {mean_loss} in epoch {epoch + 1} at learning "
                f"rate {lr:.2g}: lower train.lr or lengthen train.warmup_epochs",
                exit_code=1,
            )
        images_seen = self.steps_per_epoch * self.train.batch_size
        return {
            "epoch": epoch + 1,
            "loss": mean_loss,
            "lr": lr,
            "images_per_s": images_seen / (time.monotonic() - began),
        }

    def _train_step(
        self, images: torch.Tensor, labels: torch.Tensor, epoch: int, index: int
    ) -> torch.Tensor:
        generator = step_generator(self.job.seed, epoch, index)
        # Dropout and stochastic depth draw from the global generator, differently on each rank.
        torch.manual_seed(generator.initial_seed() ^ self.rank)
        images, targets = self.augment(
            images.to(self.device, non_blocking=True),
            labels.to(self.device, non_blocking=True),
            generator,
        )
        total = torch.zeros((), device=self.device)
        parts = self.train.accumulate
        for some, wanted in zip(images.chunk(parts), targets.chunk(parts), strict=True):
            with self._autocast():
                logits = self.engine(some).float()
            loss = training_loss(logits, wanted, self._teach(some), self.train.distill)
            self.engine.backward(loss)
            self.engine.step()  # DeepSpeed steps at the last part
            total += loss.detach() / parts
        if self.ema is not None:
            self.ema.update(self.engine.module)
        return total

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.train.precision == "bf16"
        )

    def _teach(self, images: torch.Tensor) -> torch.Tensor | None:
        if self.teacher is None:
            return None
        with torch.no_grad(), self._autocast():
            logits: torch.Tensor = self.teacher(images)
            return logits.float()

    @property
    def _scored(self) -> torch.nn.Module:
        """The model that is evaluated and taken away: the average where there is one."""
        return self.ema.module if self.ema is not None else self.engine.module

    def _evaluate(self, loader: Loader) -> dict[str, float]:
        def prepare(images: torch.Tensor) -> torch.Tensor:
            return normalize(images, self.mean, self.std)

        return evaluate(self._scored, loader, prepare, self.device)

    def _write(self, progress: JobProgress, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag=ENGINE_NAME)
        if self.rank == 0:
            tp.save(self._scored, folder / MODEL_NAME)
            write_progress(folder, progress)
        seal(folder, self.rank)

    def _resume(self) -> tuple[Path | None, JobProgress]:
        """Loads the newest undamaged checkpoint, if there is one, and says how far it was."""
        folder = self.reporter.newest_checkpoint()
        if folder is None:
            return None, JobProgress(epoch=0, num_manifests=0, device_seconds=0.0)
        self.engine.load_checkpoint(str(folder), tag=ENGINE_NAME)
        if self.ema is not None:
            averaged = tp.load(folder / MODEL_NAME)
            self.ema.module.load_state_dict(averaged.state_dict())
        progress = read_progress(folder)
        logger.info("resuming %s after epoch %d", self.job.job_id, progress.epoch)
        return folder, progress
