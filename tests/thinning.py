"""Which tests are run: of many alike some by `make test`, only light ones by `make test-fast`."""

import re
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import pytest

__all__ = ["crossed", "fast", "pytest_collection_modifyitems"]

_STARTS = re.compile(
    r"subprocess|one_process|multiprocessing|run_gang|ray_session|ray_hosts|import ray\b"
    r"|chromium|os\.fork"
)
# `torch.compile` and exporters take seconds for each model.
_COMPILES = re.compile(r"compiles|compiler|one_graph|export")


def fast(count: int, cases: Iterable[Any]) -> list[Any]:
    """The cases, those after the first `count` marked as slow."""
    return [
        case if number < count else pytest.param(*_values(case), marks=pytest.mark.slow)
        for number, case in enumerate(cases)
    ]


def crossed(*columns: Sequence[Any]) -> list[Any]:
    """All combinations; those that differ in more than one place from the first are slow.

    A fault of one value shows with the first of all others; one of two together is for the slow.
    """
    first = [column[0] for column in columns]
    cases = sorted(
        product(*columns),
        key=lambda case: sum(a is not b for a, b in zip(case, first, strict=True)),
    )
    return fast(sum(map(len, columns)) - len(columns) + 1, cases)


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as `heavy` all tests of a file that starts processes or Ray, and those that compile."""
    starts: dict[Any, bool] = {}
    for item in items:
        if item.path not in starts:
            starts[item.path] = _STARTS.search(item.path.read_text(encoding="utf-8")) is not None
        if starts[item.path] or _COMPILES.search(item.name.partition("[")[0]):
            item.add_marker(pytest.mark.heavy)
