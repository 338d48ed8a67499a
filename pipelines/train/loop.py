"""The training loop of one job, read top to bottom; it knows nothing of Ray or torchrun.

All randomness is a function of (seed, epoch, step): the order of the images and their crops
(pipelines.data), the augmentation, and dropout, whose generator is seeded anew each step. So a
job that resumes at any step goes on exactly as it would have, without saved generator states.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import Tensor

from pipelines.data.augment import DeviceAugment, normalize, step_generator
from pipelines.data.fetch import fetch
from pipelines.data.loader import Loader, make_loader
from pipelines.errors import UserError
from pipelines.models.normalization import adopt
from pipelines.train.checkpoint import EpochSums, JobProgress
from pipelines.train.draining import Departure, NodeDrained
from pipelines.train.engine import make_engine, rate_at, set_learning_rate, use_right_accelerator
from pipelines.train.evaluate import evaluate_each
from pipelines.train.life_signs import CHECKPOINT, DATA, EVALUATION, STEP, signs
from pipelines.train.losses import training_loss
from pipelines.train.metrics import EpochMeter, GpuMeter, Stopwatch
from pipelines.train.model import build_model, build_teacher
from pipelines.train.reporter import Reporter
from pipelines.train.reports import Report
from pipelines.train.sandwich import make_sandwich
from pipelines.train.saving import Saver, deciding_settings
from pipelines.train.spec import TrainJob
from pipelines.train.step_faults import first_micro_batch, gave_up, halved
from pipelines.train.update import LossOf, Outcome, Update

logger = logging.getLogger(__name__)


def run_job(job: TrainJob, reporter: Reporter, started: float) -> Report:
    """Trains one model, reporting after each epoch and checkpointing then and as often as set.

    Args:
        job: what to train. The process group of its workers must be initialised.
        reporter: where reports and checkpoints go, and what to resume from.
        started: `time.monotonic()` when this process began; the start-up counts as cost.

    Returns:
        The last epoch's report.

    Raises:
        UserError: the data is not there or does not fit the model; a checkpoint is of another
            configuration; losses are not finite, or the memory does not do for one image.
    """
    return _Training(job, reporter, started).run()


class _Training:
    def __init__(self, job: TrainJob, reporter: Reporter, started: float) -> None:
        self.job, self.train, self.reporter, self.started = job, job.train, reporter, started
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        if self.train.batch_size % self.world_size:
            raise UserError(
                f"train.batch_size {self.train.batch_size} is not divisible by "
                f"{self.world_size} workers"
            )
        self.share = self.train.batch_size // self.world_size
        torch.set_num_threads(job.workers.threads_per_worker)
        self.device = use_right_accelerator()
        torch.manual_seed(job.seed)
        manifest = fetch(job.data.path, job.data.address)
        if len(manifest.classes) != job.model.num_classes:
            raise UserError(
                f"the job has {job.model.num_classes} classes but {job.data.path} has "
                f"{len(manifest.classes)}"
            )
        self.mean, self.std = manifest.mean, manifest.std
        model = build_model(job)
        notes = adopt(model, manifest, head=False)
        if job.init is not None:
            for note in notes:
                logger.info("%s: %s", job.init, note)
        model = model.to(self.device)
        self.teacher = build_teacher(
            job, self.device, (manifest.mean, manifest.std), manifest.classes
        )
        self.ema = ModelEmaV3(model, decay=self.train.ema_decay) if self.train.ema_decay else None
        if self.train.compile:
            model.compile()  # in place: the names of the weights stay
        self.sandwich = make_sandwich(job, model)
        self.engine = make_engine(model, self.train, self.world_size)
        self.departure = None if reporter.drained is None else Departure(reporter.drained)
        self.watch, self.gpu = Stopwatch(self.device), GpuMeter(self.device)
        settings = deciding_settings(job, manifest.splits["train"].sha256)
        self.saver = Saver(job, self.engine, self.ema, settings)
        self.update = Update(self.engine, self.train.clip_grad, self.watch)
        self.augment = DeviceAugment(
            self.train.augment,
            mean=manifest.mean,
            std=manifest.std,
            num_classes=job.model.num_classes,
            rank=self.rank,
            world_size=self.world_size,
        )

    def run(self) -> Report:
        train_loader = self._loader("train", train=True)
        minival_loader = self._loader("minival", train=False)
        try:
            self._run(train_loader, minival_loader)
        finally:
            train_loader.close()
            minival_loader.close()
        assert self.report is not None  # there is at least one epoch
        return self.report

    def _run(self, train_loader: Loader, minival_loader: Loader) -> None:
        self.steps_per_epoch = len(train_loader)
        checkpoint = self.reporter.newest_checkpoint()
        progress = self.saver.resume(checkpoint)
        self.spent, self.report = progress.device_seconds, progress.metrics
        self.bad = progress.bad
        self.micro_batch = first_micro_batch(self.train, self.share, progress.micro_batch)
        if checkpoint and self.report and progress.epoch >= self.train.epochs:
            # It was killed after its last checkpoint and before anybody heard of that.
            self.reporter.report_again(self.report, checkpoint)
        first_step, sums = progress.step, progress.sums
        for epoch in range(progress.epoch, self.train.epochs):
            meter = EpochMeter(self.watch, sums)
            self._train_epoch(train_loader, meter, epoch, first_step)
            self.report = Report(
                **self._epoch_metrics(meter, epoch),
                **self._evaluate(minival_loader),
                device_seconds=self._device_seconds(),
            )
            write = partial(self.saver.write, self._progress(epoch + 1))
            signs.begin(CHECKPOINT)
            self.reporter.report(self.report, write, self.train.keep_checkpoints)
            first_step, sums = 0, EpochSums()

    def _loader(self, split: str, *, train: bool) -> Loader:
        return make_loader(
            self.job.data.path,
            split,
            batch_size=self.share,
            train=train,
            rank=self.rank,
            world_size=self.world_size,
            seed=self.job.seed,
            num_threads=self.job.data.loader_threads,
            image_size=self.job.model.image_size,
            implementation=self.job.data.loader,
            repeats=self.train.augment.repeats if train else 1,
            pin_memory=self.device.type == "cuda",  # or its copies to the GPU would wait for it
        )

    def _train_epoch(self, loader: Loader, meter: EpochMeter, epoch: int, first_step: int) -> None:
        self.engine.train()
        self.gpu.start()
        signs.begin(DATA)
        loader.set_epoch(epoch, first_step)
        for index, (images, labels) in enumerate(loader, first_step):
            signs.begin(STEP)
            step = epoch * self.steps_per_epoch + index
            set_learning_rate(self.engine.optimizer, self._learning_rate(step))
            outcome = self._train_step(images, labels, epoch, index)
            if outcome.applied:
                self.bad.good()
                meter.add(outcome.loss)
            else:
                self.bad.bad()
                if self.bad.in_row >= min(self.train.max_bad_steps, self.steps_per_epoch):
                    self._go_back(step, outcome)
            self.gpu.sample()
            signs.did(step + 1)
            leaving = "" if self.departure is None else self.departure.after(step)
            if self._may_save(index) and (leaving or self._is_checkpoint_due(step)):
                write = partial(self.saver.write, self._progress(epoch, index + 1, meter.sums()))
                signs.begin(CHECKPOINT)
                self.reporter.save(epoch, index + 1, write, self.train.keep_checkpoints)
                self.watch.lap("checkpoint")
                if leaving:
                    raise NodeDrained(f"{self.job.job_id}: {leaving} is to be taken away")
            signs.begin(DATA)

    def _train_step(self, images: Tensor, labels: Tensor, epoch: int, index: int) -> Outcome:
        generator = step_generator(self.job.seed, epoch, index)
        seed = generator.initial_seed()
        images, targets = self.augment(
            images.to(self.device, non_blocking=True),
            labels.to(self.device, non_blocking=True),
            generator,
        )
        self.watch.lap("data")
        while True:
            # Dropout and stochastic depth draw from the global generator, differently on each rank.
            torch.manual_seed(seed ^ self.rank)
            outcome = self.update(images, targets, self.micro_batch, self._passes(epoch, index))
            if not outcome.out_of_memory:
                break
            self._halve_micro_batch(epoch * self.steps_per_epoch + index)
        if self.sandwich is not None:
            self.sandwich.put_away(self.engine.module)
        if self.ema is not None and outcome.applied:
            self.ema.update(self.engine.module)
        self.watch.lap("step")
        return outcome

    def _passes(self, epoch: int, index: int) -> LossOf | Sequence[LossOf]:
        """What a step minimises: one loss, or those of a sandwich's sub-nets."""
        if self.sandwich is None:
            return self._loss
        step = epoch * self.steps_per_epoch + index
        return self.sandwich.passes(step, self.engine.module, self._logits, self._loss_of_logits)

    def _loss(self, images: Tensor, targets: Tensor) -> Tensor:
        return self._loss_of_logits(self._logits(images), images, targets)

    def _logits(self, images: Tensor) -> Tensor:
        with self._autocast():
            logits: Tensor = self.engine(images)
            return logits.float()

    def _loss_of_logits(self, logits: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        return training_loss(logits, targets, self._teach(images), self.train.distill)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.train.precision == "bf16"
        )

    def _teach(self, images: Tensor) -> Tensor | None:
        if self.teacher is None:
            return None
        with torch.no_grad(), self._autocast():
            logits: Tensor = self.teacher(images)
            return logits.float()

    def _learning_rate(self, step: int) -> float:
        return rate_at(self.train, step, self.steps_per_epoch)

    def _halve_micro_batch(self, step: int) -> None:
        before, self.micro_batch = self.micro_batch, halved(self.micro_batch)
        if self.rank == 0:
            logger.warning(
                "%s ran out of memory at step %d: from now on each worker computes its %d images "
                "of a batch in micro-batches of %d instead of %d",
                self.job.job_id,
                step + 1,
                self.share,
                self.micro_batch,
                before,
            )

    def _go_back(self, step: int, outcome: Outcome) -> None:
        """Back to the last checkpoint's weights; the data goes on after the bad stretch."""
        lr = self._learning_rate(step)
        loss = outcome.loss.clone()
        dist.all_reduce(loss)
        folder = self.reporter.newest_checkpoint()
        if folder is None or self.bad.rollbacks >= self.train.max_rollbacks:
            raise gave_up(
                self.job.job_id,
                self.bad,
                step=step + 1,
                loss=loss.item() / self.world_size,
                lr=lr,
                has_checkpoint=folder is not None,
            )
        if self.rank == 0:
            logger.warning(
                "%s goes back to the weights of %s: loss or gradient were not finite in %d steps "
                "in a row up to step %d at learning rate %.2g; their images are passed over",
                self.job.job_id,
                folder.name,
                self.bad.in_row,
                step + 1,
                lr,
            )
        self.saver.load(folder)
        self.bad.went_back()

    def _epoch_metrics(self, meter: EpochMeter, epoch: int) -> dict[str, Any]:
        lr = self._learning_rate((epoch + 1) * self.steps_per_epoch - 1)
        seconds, loss = meter.seconds, meter.mean_loss()
        if not math.isfinite(loss):
            raise gave_up(
                self.job.job_id,
                self.bad,
                step=(epoch + 1) * self.steps_per_epoch,
                loss=loss,
                lr=lr,
                has_checkpoint=True,
            )
        return {
            "epoch": epoch + 1,
            "loss": loss,
            "lr": lr,
            "images_per_s": self.steps_per_epoch * self.train.batch_size / seconds,
            **meter.shares(),
            **self.gpu.report(),
            "skipped_steps": self.bad.skipped,
            "rollbacks": self.bad.rollbacks,
            "micro_batch": self.micro_batch,
        }

    def _evaluate(self, loader: Loader) -> dict[str, Any]:
        """Scores on minival: the average's where there is one, then the raw weights' too."""

        def prepare(images: Tensor) -> Tensor:
            return normalize(images, self.mean, self.std)

        signs.begin(EVALUATION)
        models = [self.saver.scored] + ([self.engine.module] if self.ema is not None else [])
        own = len(models)
        if self.sandwich is not None:
            models += self.sandwich.watched(self.saver.scored)
        scores = evaluate_each(models, loader, prepare, self.device, at_a_time=self.micro_batch)
        found = {
            f"{name}_minival{suffix}": score[name]
            for suffix, score in zip(("", "_raw"), scores[:own], strict=False)
            for name in ("top1", "top5", "loss")
        }
        if pooled := scores[own:]:
            for name in ("top1", "loss"):
                found[f"{name}_minival_pooled"] = sum(s[name] for s in pooled) / len(pooled)
        return found

    def _device_seconds(self) -> float:
        return self.spent + self.world_size * (time.monotonic() - self.started)

    def _may_save(self, index: int) -> bool:
        return (
            index + 1 < self.steps_per_epoch  # the epoch's own comes after it is evaluated
            and self.bad.in_row == 0  # there must be something good to go back to
        )

    def _is_checkpoint_due(self, step: int) -> bool:
        every = self.train.checkpoint_every_steps
        return every is not None and (step + 1) % every == 0

    def _progress(self, epoch: int, step: int = 0, sums: EpochSums | None = None) -> JobProgress:
        return self.saver.progress(
            epoch=epoch,
            step=step,
            sums=sums or EpochSums(),
            device_seconds=self._device_seconds(),
            metrics=self.report,
            bad=self.bad,
            micro_batch=self.micro_batch,
        )
