"""Which tests are run: of many alike some by `make test`, only light ones by `make test-fast`."""

import re
from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["fast", "pytest_collection_modifyitems"]

_STARTS = re.compile(
    r"subprocess|multiprocessing|run_gang|ray_session|ray_hosts|import ray\b|chromium|os\.fork"
)
# `torch.compile` and exporters take seconds for each model.
_COMPILES = re.compile(r"compiles|compiler|one_graph|export")


def fast(count: int, cases: Iterable[Any]) -> list[Any]:
    """The cases, those after the first `count` marked as slow."""
    return [
        case if number < count else pytest.param(*_values(case), marks=pytest.mark.slow)
        for number, case in enumerate(cases)
    ]


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
