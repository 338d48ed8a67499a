"""Small jobs for `test_jobs.py`: torchrun runs them all in one pair of processes.

Some have an unusual recipe, most are in distress: something goes wrong on one rank. What came of
each is left in `OUT/NAME.json` and in its own folder. Some jobs are the measure of others: they do
by plain means, without the code under test, what a job in distress ought to come to.
"""

import json
import sys
import time
from pathlib import Path
from types import MappingProxyType as Settings

import timm
import torch
import torch.distributed as dist

from pipelines.config import (
    DataConfig,
    ModelConfig,
    TrainConfig,
    TrainRunConfig,
    WidthConfig,
    WorkersConfig,
)
from pipelines.errors import UserError
from pipelines.train import loop
from pipelines.train.reporter import FolderReporter
from pipelines.train.spec import job_of
from pipelines.train.update import Outcome, Update

STEPS = 17  # of an epoch, 1,151 images in batches of 64


class SpoilGradient(torch.autograd.Function):
    """The identity, but its gradient is NaN, or there is no memory for it."""

    @staticmethod
    def forward(ctx, loss, error):
        ctx.error = error
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.error is not None:
            raise ctx.error
        return gradient * torch.nan, None


class PlainUpdate(Update):
    """The same step without any guard: DeepSpeed reduces by itself, torch clips."""

    def __call__(self, images, targets, micro_batch, loss_of):
        loss = loss_of(images, targets)
        self.engine.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.engine.module.parameters(), self.clip_grad)
        self.engine.step()
        return Outcome(loss.detach(), applied=True)


class Job:
    """One job on this rank; subclasses do harm."""

    settings = Settings({})
    update: type = Update
    answer = ""  # under which its result is left, if not its name

    def __init__(self, name, out, data):
        self.name, self.out, self.step = name, out, -1
        train = {"epochs": 2, "batch_size": 64, "warmup_epochs": 0.5, **self.settings}
        self.job = job_of(
            TrainRunConfig(
                name=name,
                storage=out,
                data=DataConfig(path=data, image_size=32),
                model=ModelConfig(patch_size=8, depth=2),
                width=WidthConfig(width=32, heads=2),
                train=TrainConfig(**train),
                workers=WorkersConfig(num_workers=2),
                seed=3,
            )
        )

    def harm(self, loss, images):
        """What happens to a loss at `self.step`, on rank 1."""
        return loss

    def run(self):
        training = loop._Training(self.job, self.reporter(), time.monotonic())
        training.update = self.update(training.engine, training.train.clip_grad, training.watch)
        plain_loss, plain_step = training._loss, training._train_step

        def loss(images, targets):
            value = plain_loss(images, targets)
            return self.harm(value, images) if dist.get_rank() == 1 else value

        def train_step(images, labels, epoch, index):
            self.step = epoch * STEPS + index
            return self.train_step(plain_step, images, labels, epoch, index)

        training._loss, training._train_step = loss, train_step
        try:
            result = training.run().to_json()
        except UserError as error:
            result = {"error": str(error)}
        except KeyboardInterrupt:
            result = {"error": "interrupted"}
        if dist.get_rank() == 0:
            (self.out / f"{self.answer or self.name}.json").write_text(json.dumps(result))
        dist.barrier()

    def train_step(self, plain, images, labels, epoch, index):
        return plain(images, labels, epoch, index)

    def reporter(self):
        return FolderReporter(self.job.folder)


class Recomputing(Job):
    settings = Settings({"checkpoint_activations": True})


class WarmupStableDecay(Job):
    settings = Settings({"lr_schedule": "wsd", "layer_decay": 0.7, "decay_fraction": 0.5})


class HalfPrecision(Job):
    settings = Settings({"precision": "bf16"})


class Taught(Job):
    """Softly, by the model of the job `straight`."""

    @property
    def settings(self):
        model = self.out / "trains/straight/epoch-0002/model"
        return {"distill": {"teacher": str(model), "kind": "soft", "temperature": 2.0}}


class TaughtByTimm(Job):
    """Firmly, by a model of timm's; its weights are random, for there may be no network."""

    settings = Settings({"distill": {"teacher": "resnet10t", "kind": "hard", "weight": 0.5}})

    def run(self):
        create = timm.create_model
        timm.create_model = lambda name, pretrained: create(name, num_classes=10)
        try:
            super().run()
        finally:
            timm.create_model = create


class Straight(Job):
    settings = Settings({"ema_decay": 0.9, "drop_path": 0.1})


class Unguarded(Straight):
    update = PlainUpdate


class NanLoss(Straight):
    bad = (5,)

    def harm(self, loss, images):
        return loss * torch.nan if self.step in self.bad else loss


class InfiniteLossOfOnePart(NanLoss):
    """With micro-batches: only the first part of a share is bad, and its gradient is finite."""

    settings = Settings({**Straight.settings, "accumulate": 2})
    parts = 0

    def harm(self, loss, images):
        self.parts += self.step in self.bad
        return loss + torch.inf if self.step in self.bad and self.parts == 1 else loss


class NanGradient(NanLoss):
    def harm(self, loss, images):
        return SpoilGradient.apply(loss, None) if self.step in self.bad else loss


class Spike(NanLoss):
    def harm(self, loss, images):
        return loss * 1e6 if self.step in self.bad else loss


class LeftOut(NanLoss):
    """The measure: the bad steps are not there."""

    def train_step(self, plain, images, labels, epoch, index):
        if self.step in self.bad:
            return Outcome(torch.zeros(()), applied=False)
        return plain(images, labels, epoch, index)

    def harm(self, loss, images):
        return loss


class LeftOutOfParts(LeftOut):
    settings = InfiniteLossOfOnePart.settings


class GoesBack(NanLoss):
    bad = (STEPS + 4, STEPS + 5, STEPS + 6)
    settings = Settings({**Straight.settings, "max_bad_steps": 3, "keep_checkpoints": 3})


class WentBack(GoesBack):
    """The measure: from the first epoch's checkpoint on, the whole stretch is not there."""

    bad = tuple(range(STEPS, STEPS + 7))
    settings = Settings({**Straight.settings, "max_bad_steps": 100})
    train_step, harm = LeftOut.train_step, LeftOut.harm


class GivesUp(NanLoss):
    bad = range(STEPS + 4, 10**6)
    settings = Settings({**Straight.settings, "max_bad_steps": 3, "max_rollbacks": 1})


class NothingToGoBackTo(NanLoss):
    bad = range(2, 10**6)
    settings = Settings({**Straight.settings, "max_bad_steps": 3})


class OutOfMemory(Job):
    """Rank 1 has memory for 10 images. A share is 32 of them."""

    most = 10
    times = 0

    def harm(self, loss, images):
        if len(images) > self.most:
            self.times += 1
            raise torch.OutOfMemoryError("out of memory, as a test has it")
        return loss


class OutOfMemoryBehind(OutOfMemory):
    """The same in the backward pass, amid an accumulation."""

    settings = Settings({"micro_batch": 16})

    def harm(self, loss, images):
        if self.step >= 3 and len(images) > self.most:
            return SpoilGradient.apply(loss, torch.OutOfMemoryError("again"))
        return loss


class Interrupted(OutOfMemory):
    settings = Settings({"checkpoint_every_steps": 4})

    def train_step(self, plain, images, labels, epoch, index):
        if self.step == 6:
            raise KeyboardInterrupt
        return plain(images, labels, epoch, index)


class GoesOn(OutOfMemory):
    settings = Interrupted.settings

    def run(self):
        super().run()
        if dist.get_rank() == 1:
            (self.out / "goes-on-times").write_text(str(self.times))


class AskedAgain(GoesOn):
    """It is finished, and what it answers is left under another name."""

    answer = "asked-again"

    def run(self):
        Job.run(self)


class AskedOtherwise(AskedAgain):
    """Under the same name, but with another rate; and with a safeguard that may change."""

    answer = "asked-otherwise"
    settings = Settings({"lr": 2e-3, "keep_checkpoints": 5})


class NoMemoryAtAll(OutOfMemory):
    most = 0


def partitioned(kind, stage):
    """The same job with ZeRO stage 1 or 2, which has no drop path and EMA to tell apart."""
    return type(kind.__name__, (kind,), {"settings": {**kind.settings, "zero_stage": stage}})


def main(out, data, which):
    """Runs the jobs that tests look at: `all`, or the `few` of those that are not slow."""
    jobs = [
        ("straight", Straight),
        ("nan-loss", NanLoss),
        ("nan-gradient", NanGradient),
        ("spike", Spike),
        ("left-out", LeftOut),
        ("infinite-part", InfiniteLossOfOnePart),
        ("left-out-of-parts", LeftOutOfParts),
        ("goes-back", GoesBack),
        ("went-back", WentBack),
        ("gives-up", GivesUp),
        ("nothing-to-go-back-to", NothingToGoBackTo),
        ("enough-memory", Job),
        ("out-of-memory", OutOfMemory),
        ("out-of-memory-behind", OutOfMemoryBehind),
        ("interrupted", Interrupted),
        ("interrupted", AskedOtherwise),
        ("interrupted", GoesOn),
        ("interrupted", AskedAgain),
        ("no-memory", NoMemoryAtAll),
        ("recomputing", Recomputing),
        ("warmup-stable-decay", WarmupStableDecay),
        ("half-precision", HalfPrecision),
        ("taught", Taught),
        ("taught-by-timm", TaughtByTimm),
    ]
    jobs += [
        ("nan-loss-2", partitioned(NanLoss, 2)),
        ("left-out-2", partitioned(LeftOut, 2)),
        ("out-of-memory-behind-2", partitioned(OutOfMemoryBehind, 2)),
    ]
    if which == "all":
        jobs += [
            ("unguarded", Unguarded),
            ("nan-loss-1", partitioned(NanLoss, 1)),
            ("left-out-1", partitioned(LeftOut, 1)),
            ("out-of-memory-1", partitioned(OutOfMemory, 1)),
            ("out-of-memory-2", partitioned(OutOfMemory, 2)),
            ("out-of-memory-behind-1", partitioned(OutOfMemoryBehind, 1)),
        ]
    dist.init_process_group("gloo")
    for name, kind in jobs:
        kind(name, out, data).run()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
