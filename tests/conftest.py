"""Faults that tests inject, in one table at the end of `make chaos`.

A test says which by `@pytest.mark.fault("worker killed")`. What it measured, or how often it was
done, it may say itself: the fixture `told`. TOKENPOOL_CHAOS_TABLE names a file that the table is
kept in as well, as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from resources import nothing_is_left  # noqa: F401 — used by all tests that inject faults
from rich.console import Console
from rich.table import Table
from thinning import pytest_collection_modifyitems  # noqa: F401 — pytest calls it

# Many small programs share few cores here: one thread each, and Ray's workers, which would make way
# for all other tests, take their share.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")

# An example takes long where others use the machine as well; whole tests have their limits.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared once, for all tests that read them and change nothing."""
    from pipelines.data.prepare import prepare  # here: most tests do without it

    out = tmp_path_factory.mktemp("data") / "digits"
    prepare("digits", out)
    return out


@pytest.fixture(scope="session")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model that knows a little of them."""
    from small_models import train_small

    import tokenpool as tp

    return tp.save(train_small(digits), tmp_path_factory.mktemp("model") / "model")


@dataclass
class Fault:
    """One kind of fault.

    Attributes:
        injected: times.
        survived: of these.
        steps_lost: training steps done again after one of them, at most; None where nobody counts.
        seconds: until the work went on, at most; None where that is at once or not measured.
    """

    injected: int = 0
    survived: int = 0
    steps_lost: int | None = None
    seconds: float | None = None


_FOUND = pytest.StashKey[dict[str, Fault]]()


def _add(config: pytest.Config, name: str, fault: Fault) -> None:
    found = config.stash.setdefault(_FOUND, {}).setdefault(name, Fault())
    found.injected += fault.injected
    found.survived += fault.survived
    for figure in ("steps_lost", "seconds"):
        new, old = getattr(fault, figure), getattr(found, figure)
        if new is not None:
            setattr(found, figure, new if old is None else max(new, old))


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Adds a fault to the table, once it was injected and survived."""

    def note(name: str, times: int = 1, **figures: float) -> None:
        _add(request.config, name, Fault(times, times, **figures))  # type: ignore[arg-type]

    return note


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    mark = item.get_closest_marker("fault")
    if mark is not None and call.when == "call" and not report.skipped:
        _add(item.config, mark.args[0], Fault(1, int(report.passed)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    config = terminalreporter.config
    found = config.stash.get(_FOUND, {})
    if not found or "not chaos" in config.option.markexpr:
        return
    table = Table("fault", "injected", "survived", "steps lost", "seconds to recover")
    for name, fault in sorted(found.items()):
        table.add_row(
            name,
            str(fault.injected),
            str(fault.survived),
            "" if fault.steps_lost is None else str(fault.steps_lost),
            "" if fault.seconds is None else f"{fault.seconds:.0f}",
        )
    if place := os.environ.get("TOKENPOOL_CHAOS_TABLE"):
        _write(Path(place), found)
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    terminalreporter.write_line("")
    terminalreporter.write_line(capture.get())


def _write(place: Path, found: dict[str, Fault]) -> None:
    """Adds the table to that of a file, where the files of tests are run one by one."""
    rows = json.loads(place.read_text()) if place.exists() else {}
    rows.update({name: asdict(fault) for name, fault in found.items()})
    place.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
