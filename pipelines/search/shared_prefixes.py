"""Many schedules of one model on the same images: what they begin with in common is computed once.

A probe of what pooling costs at a layer leaves the layers before it as they are, so most of its
work is the dense model's. Run in the order of their counts, schedules share as much as they can:
each goes on from where it parts with the one before. One output a block is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

import tokenpool as tp
from tokenpool.patches import patches_of

__all__ = ["run_schedules", "shared_work"]


def run_schedules(
    model: Any, images: Tensor, schedules: Sequence[tuple[int, ...]], method: str
) -> Iterator[tuple[int, Tensor]]:
    """Runs a model under schedules: (place among them, logits), in the order they are finished.

    The logits are those of a model that is pooled and run from the start. The model stays pooled
    by the last schedule.

    Args:
        model: that can be pooled, in evaluation mode.
        images: a batch, as the model wants it.
        schedules: for its depth.
        method: of `tp.METHODS`, with its options as text.
    """
    before: tuple[int, ...] = ()
    outputs: dict[int, Any] = {}  # of the patch embedding (0), then of each block, under `before`
    for index in _in_order(schedules):
        schedule = tuple(schedules[index])
        tp.pool(model, schedule, method=method)
        shared = _in_common(before, schedule) + 1 if before else 0
        with _remembered(model, outputs, shared):
            logits = model(images)
        before = schedule
        yield index, logits


def shared_work(
    schedules: Sequence[tuple[int, ...]], cost: Callable[[int, int, int], float], patches: int
) -> list[tuple[int, float]]:
    """What each schedule adds to the work of those run before it: (place among them, cost).

    Args:
        schedules: as `run_schedules` takes them, and in the order it finishes them.
        cost: of a block (layer from 1, tokens that enter, tokens that leave).
        patches: tokens that enter the first block.
    """
    before: tuple[int, ...] = ()
    found = []
    for index in _in_order(schedules):
        schedule = tuple(schedules[index])
        incoming = (patches, *schedule)
        layers = range(_in_common(before, schedule), len(schedule))
        work = sum(cost(layer + 1, incoming[layer], schedule[layer]) for layer in layers)
        found.append((index, work))
        before = schedule
    return found


def _in_order(schedules: Sequence[tuple[int, ...]]) -> list[int]:
    """Places of the schedules; neighbours have most in common."""
    return sorted(range(len(schedules)), key=lambda index: tuple(schedules[index]), reverse=True)


def _in_common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """How many counts two schedules begin with alike."""
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))


@contextmanager
def _remembered(model: Any, outputs: dict[int, Any], shared: int) -> Iterator[None]:
    """For as long as the block runs, the first stages give their outputs of before, others keep.

    The model's own forward runs as ever, so whatever it does between and after its blocks is done.
    The last block always runs: what a head may want of it besides its output is then there.
    """
    blocks = list(model.blocks)
    for place in range(min(shared, len(blocks)), len(blocks) + 1):
        outputs.pop(place, None)
    embedding = patches_of(model).module
    for index, block in enumerate(blocks):
        model.blocks[index] = _Remembering(block, outputs, index + 1)
    # Stays in its place: models read its sizes.
    embedding.__dict__["forward"] = _Remembering(embedding.forward, outputs, 0).forward
    try:
        yield
    finally:
        for index, block in enumerate(blocks):
            model.blocks[index] = block
        del embedding.__dict__["forward"]


class _Remembering(nn.Module):
    """Runs a stage once and from then on gives what it gave."""

    def __init__(self, stage: Callable[..., Any], outputs: dict[int, Any], place: int) -> None:
        super().__init__()
        # In a tuple, so that it is no child: the stage's own place is in the model.
        self._stage, self._outputs, self._place = (stage,), outputs, place

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The stage's output, whatever comes in, where it is known."""
        if self._place not in self._outputs:
            self._outputs[self._place] = self._stage[0](*args, **kwargs)
        return self._outputs[self._place]
