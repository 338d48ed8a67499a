"""The schedule: how many patch tokens are left after each transformer block."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import SupportsIndex

__all__ = ["Schedule"]


class Schedule(tuple[int, ...]):
    """An immutable, non-increasing sequence of patch-token counts, one per block.

    Class, distillation and register tokens are not counted: they are never pooled. `str()` gives
    the form that `parse` reads ("49,40,33"). Hashable, and equal to a tuple of the same counts.

    Raises:
        ValueError: if it is empty, a count is not a whole number of at least 1, or a layer keeps
            more tokens than the one before; the message names the layer (from 1) and the counts.
    """

    __slots__ = ()

    def __new__(cls, counts: Iterable[SupportsIndex]) -> Schedule:
        """Check the counts and freeze them."""
        checked: list[int] = []
        for layer, count in enumerate(counts, start=1):
            try:
                tokens = operator.index(count)
            except TypeError:
                raise ValueError(
                    f"layer {layer} keeps {count!r} tokens: a whole number is needed"
                ) from None
            if tokens < 1:
                raise ValueError(f"layer {layer} keeps {tokens} tokens: at least 1 is needed")
            if checked and tokens > checked[-1]:
                raise ValueError(
                    f"layer {layer} keeps {tokens} tokens but layer {layer - 1} keeps only "
                    f"{checked[-1]}: a schedule never grows"
                )
            checked.append(tokens)
        if not checked:
            raise ValueError("a schedule needs one count per block, but it is empty")
        return super().__new__(cls, checked)

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read a schedule written as "49,40,33".

        Raises:
            ValueError: as the class, or for a part that is not a whole number.
        """
        counts: list[int] = []
        for layer, part in enumerate(text.split(","), start=1):
            try:
                counts.append(int(part))
            except ValueError:
                raise ValueError(
                    f"schedule {text!r}: {part.strip()!r} at layer {layer} is not a whole number; "
                    'write it as "49,40,33"'
                ) from None
        return cls(counts)

    @classmethod
    def dense(cls, depth: int, patches: int) -> Schedule:
        """The schedule of the unpooled model: every block keeps all `patches` tokens."""
        return cls([patches] * depth)

    @classmethod
    def constant_rate(cls, depth: int, patches: int, rate: float) -> Schedule:
        """Keep the share `rate` (0 < rate ≤ 1) of the tokens after every block.

        Layer l keeps `patches · rate^l`, rounded, at least 1: computed from `patches` and not from
        the rounded layer before, so that small counts still shrink.

        Args:
            depth: the number of blocks.
            patches: the patch tokens that enter the first block.
            rate: the share that each block keeps.

        Raises:
            ValueError: for a rate outside 0 < rate ≤ 1.
        """
        if not 0.0 < rate <= 1.0:
            raise ValueError(f"keep rate {rate} is outside 0 < rate <= 1")
        return cls(max(1, int(patches * rate**layer + 0.5)) for layer in range(1, depth + 1))

    def check(self, depth: int, patches: int | None) -> None:
        """Refuse the schedule for a model of `depth` blocks and `patches` tokens (None: any).

        Raises:
            ValueError: if its length is not `depth`, or layer 1 keeps more than there are.
        """
        if len(self) != depth:
            raise ValueError(
                f"the schedule has {len(self)} layers but the model has {depth} blocks"
            )
        if patches is not None and self[0] > patches:
            raise ValueError(f"layer 1 keeps {self[0]} tokens but the model has only {patches}")

    def __str__(self) -> str:
        return ",".join(str(count) for count in self)

    def __repr__(self) -> str:
        return f"Schedule(({', '.join(str(count) for count in self)}{',' * (len(self) == 1)}))"

    def __getnewargs__(self) -> tuple[tuple[int, ...]]:
        return (tuple(self),)
