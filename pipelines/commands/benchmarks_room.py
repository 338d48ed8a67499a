"""The package `benchmarks`, which `tokenpool bench` calls and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.errors import UserError


@contextmanager
def benchmarks_room() -> Iterator[None]:
    """Imports from the benchmarks belong in this block.

    Raises:
        UserError: they are not installed, or another package has their name.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "benchmarks":
            raise
        raise UserError(
            f"tokenpool's {error.name} is not installed here: `make install` in a clone, or "
            "`pip install` of it, installs the benchmarks as well",
            exit_code=1,
        ) from error
