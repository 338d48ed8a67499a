"""A supernet: one set of weights that every schedule can run on, trained by the sandwich rule.

K has no parameters, so all schedules of a width share its weights. A step runs, on the same
images, the dense model, the smallest schedule and a few random ones (Yu and Huang, "Universally
Slimmable Networks", 2019, section 4.1; Yu et al., "BigNAS", 2020). The dense one learns from the
labels; what it answers, without gradient, teaches the others (in-place distillation, ibid.).
Most of the random ones are neighbours of schedules near the front, for only those will be asked
of it; the rest come from anywhere in the space, so that what lies between is not forgotten.

The sub-nets of a step follow from the seed and the number of the step: all ranks run the same
ones, and a job that resumes goes on with those it would have run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

import tokenpool as tp
from pipelines.config import DistillConfig, SandwichConfig, SubNetConfig
from pipelines.errors import UserError
from pipelines.train.losses import training_loss
from pipelines.train.spec import TrainJob
from pipelines.train.update import LossOf
from tune_spaces.evolution import spread_over_cost
from tune_spaces.limits import Cost
from tune_spaces.space import Candidate, ScheduleSpace

# images [b, 3, H, W] → logits [b, classes]
LogitsOf = Callable[[Tensor], Tensor]
# logits, images, targets → loss
LossOfLogits = Callable[[Tensor, Tensor, Tensor], Tensor]

_STREAM = 0x5A4D  # keeps these draws apart from others of the same seed
_MOST_MOVES = 3
_WATCHED = 3


class Sandwich:
    """The sub-nets of each step, and what each of them minimises.

    Args:
        spec: shapes of the model, which decide what a schedule costs.
        method: of `tp.METHODS`, with its options; where `config` names others, these.
        config: which schedules, and how much they learn from the dense one.
        seed: the job's.

    Raises:
        UserError: a schedule does not fit the model, or none is within the bound.
    """

    def __init__(self, spec: tp.VitSpec, method: str, config: SandwichConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self._width = spec.width

        def cost_by(name: str) -> Cost:
            return lambda _, schedule: tp.vit_macs(spec, schedule, name).gmacs

        try:
            self.space = ScheduleSpace(
                spec.depth,
                spec.patches,
                [spec.width],
                {name: cost_by(name) for name in config.methods or (method,)},
                min_tokens=config.min_tokens,
                step=config.token_step,
                # What is just within the search's bound is so here too, in spite of rounding.
                max_gmacs=None if config.max_gmacs is None else config.max_gmacs * (1 + 1e-9),
            )
            self.near = [
                self.space.candidate(spec.width, each.schedule, each.method) for each in config.near
            ]
        except ValueError as error:
            raise UserError(f"sandwich: {error}") from None
        self._distill = None
        if config.distill_weight:
            self._distill = DistillConfig(
                teacher="the dense sub-net", kind="soft", weight=config.distill_weight
            )

    def sub_nets(self, step: int) -> list[SubNetConfig]:
        """Those of a step (counted over all epochs): dense, smallest, and the random ones."""
        rng = np.random.default_rng([self._seed, _STREAM, step])
        drawn = [self._draw(rng) for _ in range(self._config.random)]
        # Of several methods the smallest schedule is run by each in turn.
        methods = self.space.methods
        return [
            SubNetConfig(schedule=self.space.dense(), method=methods[0]),
            SubNetConfig(schedule=self.space.smallest(), method=methods[step % len(methods)]),
            *(_sub_net(candidate) for candidate in drawn),
        ]

    def passes(
        self, step: int, model: nn.Module, logits_of: LogitsOf, loss_of: LossOfLogits
    ) -> list[LossOf]:
        """The losses of a step's sub-nets, each to be called and differentiated before the next.

        Args:
            step: counted over all epochs.
            model: is given each sub-net's schedule in turn.
            logits_of: runs the model.
            loss_of: what the dense sub-net minimises.
        """
        answers: list[Tensor] = []

        def dense_loss(each: SubNetConfig, images: Tensor, targets: Tensor) -> Tensor:
            tp.pool(model, each.schedule, str(each.method))
            logits = logits_of(images)
            answers[:] = [logits.detach()]
            return loss_of(logits, images, targets)

        def pooled_loss(each: SubNetConfig, images: Tensor, targets: Tensor) -> Tensor:
            tp.pool(model, each.schedule, str(each.method))
            return training_loss(logits_of(images), targets, answers[0], self._distill)

        dense, *others = self.sub_nets(step)
        return [partial(dense_loss, dense), *(partial(pooled_loss, each) for each in others)]

    def put_away(self, model: nn.Module) -> None:
        """Makes the model dense again, as it is evaluated and saved."""
        tp.pool(model, None)

    def watched(self, model: nn.Module) -> list[nn.Module]:
        """A few sub-nets near the front, spread over the cost, to evaluate after each epoch."""
        near = self.near or [self.space.candidate(self._width, self.space.smallest())]
        costs = np.array([candidate.gmacs for candidate in near])
        chosen = spread_over_cost(costs, np.arange(len(near)), _WATCHED)
        return [SubNet(model, near[i].schedule, near[i].method) for i in chosen]

    def _draw(self, rng: np.random.Generator) -> Candidate:
        """A neighbour of one near the front, or one from anywhere."""
        if not self.near or rng.random() < self._config.uniform_share:
            return self.space.sample(rng, width=self._width)[0]
        parent = self.near[rng.integers(len(self.near))]
        moves = int(rng.integers(1, _MOST_MOVES + 1))
        return self.space.mutate(rng, parent, num_layers=moves, width_rate=0.0)


def _sub_net(candidate: Candidate) -> SubNetConfig:
    return SubNetConfig(schedule=candidate.schedule, method=candidate.method)


class SubNet(nn.Module):
    """A model under one schedule; between its calls the model is dense.

    Args:
        model: a dense one, whose weights it runs on.
        schedule: patch tokens kept after each block.
        method: of `tp.METHODS`.
    """

    def __init__(self, model: nn.Module, schedule: tp.Schedule, method: str) -> None:
        super().__init__()
        self.model: Any = model
        self.schedule, self.method = schedule, method

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, classes]`."""
        tp.pool(self.model, self.schedule, self.method)
        try:
            logits: Tensor = self.model(images)
            return logits
        finally:
            tp.pool(self.model, None)


def make_sandwich(job: TrainJob, model: nn.Module) -> Sandwich | None:
    """The sandwich of a job that trains a supernet; None for any other."""
    if job.sandwich is None:
        return None
    return Sandwich(tp.vit_spec(model), job.method, job.sandwich, job.seed)
