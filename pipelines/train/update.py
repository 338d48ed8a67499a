"""One optimizer update: micro-batches, the all-reduce of their gradients, and the step or none.

A rank whose loss or gradient is not finite, or that runs out of memory, needs no message to the
others: it joins the all-reduce that every step has anyway with gradients of NaN. So the sum is NaN
on all ranks, and all of them leave the step out. Only then do they talk about the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from pipelines.train.imports import forget_backward
from pipelines.train.metrics import Stopwatch

# (images [b, 3, H, W], targets [b] or [b, classes]) → mean loss of these images.
LossOf = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Outcome:
    """What became of a step; all but the loss is the same on every rank.

    Attributes:
        loss: this rank's mean loss, a scalar without gradient.
        applied: the weights were updated. If not, weights and optimizer are as they were.
        out_of_memory: a rank ran out of memory, which is why the step was not applied.
    """

    loss: Tensor
    applied: bool
    out_of_memory: bool = False


class Update:
    """Updates the model of a DeepSpeed engine that `make_engine` made.

    Args:
        engine: with ZeRO stage 0, 1 or 2.
        clip_grad: largest norm of the gradient; 0 for no clipping.
        watch: told when forward, backward, communication and the step are over.
    """

    def __init__(self, engine: Any, clip_grad: float, watch: Stopwatch) -> None:
        self.engine, self.clip_grad, self.watch = engine, clip_grad, watch
        self._partitioned = engine.zero_optimization_stage() > 0

    def __call__(
        self,
        images: Tensor,
        targets: Tensor,
        micro_batch: int,
        loss_of: LossOf | Sequence[LossOf],
    ) -> Outcome:
        """One step on this rank's share of a batch.

        Args:
            images: `[B, 3, H, W]`, this rank's.
            targets: `[B]` or `[B, classes]`.
            micro_batch: images that are computed at a time.
            loss_of: what is minimised. Of several the mean: each is called in turn, and its
                backward pass is over before the next begins, so that they may run the same
                module in different forms and hold no more memory than one.
        """
        passes = [loss_of] if callable(loss_of) else list(loss_of)
        loss = torch.zeros((), device=images.device)
        ran_out = False
        with self._gradients_stay_here():
            try:
                for some, wanted in zip(
                    images.split(micro_batch), targets.split(micro_batch), strict=True
                ):
                    share = len(some) / len(images) / len(passes)
                    for one in passes:
                        part = one(some, wanted)
                        self.watch.lap("forward")
                        # NaN where the loss is not finite: then no gradient is finite.
                        weight = share + 0 * part.detach()
                        self.engine.backward(part * weight, scale_wrt_gas=False)
                        loss += part.detach() * share
                        self.watch.lap("backward")
            except torch.OutOfMemoryError:
                ran_out = True  # and no more here: the exception keeps the activations alive
            if ran_out:
                self._spoil_gradients()
        if not self._partitioned:
            self._reduce()
        self.watch.lap("communication")
        applied = self._step()
        if applied:
            return Outcome(loss, applied=True)
        reason = torch.tensor(float(ran_out), device=images.device)
        dist.all_reduce(reason, dist.ReduceOp.MAX)
        return Outcome(loss, applied=False, out_of_memory=bool(reason))

    def _gradients_stay_here(self) -> AbstractContextManager[None]:
        """Backward passes inside leave their gradients on the rank.

        With ZeRO 1 and 2 they are reduced at the end of the block, once for all micro-batches;
        DeepSpeed would otherwise do so within each backward pass, out of which a rank that runs
        out of memory could not come back. Its buckets are larger than these models, so nothing
        would have been reduced earlier anyway.
        """
        if self._partitioned:
            return self.engine.coalesce_grad_reduction()
        return self.engine.no_sync()

    def _reduce(self) -> None:
        """The mean gradient over the ranks, everywhere."""
        if dist.get_world_size() > 1:
            self.engine.allreduce_gradients()
            return
        for parameter in self.engine.module.parameters():
            # As DeepSpeed does, which would then copy all of them twice.
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _spoil_gradients(self) -> None:
        """Makes all gradients NaN, after a backward pass that broke off."""
        optimizer = self.engine.optimizer
        if self._partitioned:
            forget_backward(optimizer)
        for parameter in self.engine.module.parameters():
            if parameter.requires_grad:
                parameter.grad = None
        if self.watch.device.type == "cuda":
            torch.cuda.empty_cache()
        for parameter in self.engine.module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, torch.nan)

    def _step(self) -> bool:
        """Clips and steps where the reduced gradient is finite; the one look at the device."""
        if self._partitioned:
            self.engine.step()  # finds by itself that the norm is not finite, and forgets all
            return bool(self.engine.was_step_applied())
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        norm = get_total_norm(gradients)
        if self.clip_grad:
            clip_grads_with_norm_(self.engine.module.parameters(), self.clip_grad, norm)
        if not torch.isfinite(norm):
            self.engine.zero_grad()
            return False
        self.engine.step()
        return True
