"""Where Ray puts the workers of a job, as far as a simulation has to know."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["place"]


def place(free: Sequence[int], num_workers: int) -> dict[int, int] | None:
    """The nodes a job's workers go to: as few as possible, and of those the fullest.

    Args:
        free: how many workers each node still has room for.
        num_workers: how many workers the job has.

    Returns:
        The index of each node → the workers there; None where there is no room.
    """
    if sum(free) < num_workers:
        return None
    chosen: dict[int, int] = {}
    left = num_workers
    # The roomiest first needs the fewest; what is left then goes where it fits most tightly.
    for index in sorted(range(len(free)), key=lambda index: (-free[index], index)):
        if free[index] >= left:
            break
        chosen[index] = free[index]
        left -= free[index]
    if left:
        last = min(
            (index for index, room in enumerate(free) if room >= left and index not in chosen),
            key=lambda index: (free[index], index),
        )
        chosen[last] = left
    return chosen
