"""Of many cases that take seconds each, `make test` runs some and `make test-slow` all."""

from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["fast"]


def fast(count: int, cases: Iterable[Any]) -> list[Any]:
    """The cases, those after the first `count` marked as slow."""
    return [
        case if number < count else pytest.param(*_values(case), marks=pytest.mark.slow)
        for number, case in enumerate(cases)
    ]


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
