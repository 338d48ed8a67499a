"""What chaos tests found, in one table at the end: `make chaos`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from rich.console import Console
from rich.table import Table


@dataclass
class Fault:
    """One kind of fault, injected in one test.

    Attributes:
        name: what happened.
        injected: times.
        survived: of these.
        steps_lost: training steps done again for one of them, at most; None where none is trained.
        seconds: until the work went on, in the mean; None where that is at once or not measured.
    """

    name: str
    injected: int = 1
    survived: int = 1
    steps_lost: int | None = None
    seconds: float | None = None


_FOUND = pytest.StashKey[list[Fault]]()


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Notes a fault that was injected, for the table; called once the test has survived it."""
    found = request.config.stash.setdefault(_FOUND, [])

    def note(name: str, **figures: float | int | None) -> None:
        found.append(Fault(name, **figures))  # type: ignore[arg-type]

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = terminalreporter.config.stash.get(_FOUND, [])
    if not found:
        return
    table = Table("fault", "injected", "survived", "steps lost", "seconds to recover")
    for fault in sorted(found, key=lambda fault: fault.name):
        table.add_row(
            fault.name,
            str(fault.injected),
            str(fault.survived),
            "" if fault.steps_lost is None else str(fault.steps_lost),
            "" if fault.seconds is None else f"{fault.seconds:.1f}",
        )
    console = Console(width=110)
    with console.capture() as capture:
        console.print(table)
    terminalreporter.write_line("")
    terminalreporter.write_line(capture.get())
