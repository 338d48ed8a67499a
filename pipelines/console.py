"""What a person sees while a command works: headings, progress, plain lines off a terminal."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.rule import Rule
from rich.table import Table

from pipelines.secrecy.guard import redactor

_PLAIN_STEPS = 10
_PLAIN_SECONDS = 15.0
_USERS_PATH = os.environ.get("PATH", "")  # as it was, before `use_own_scripts`


def program() -> str:
    """How to call this program from where the user is: by name, or by its path."""
    name = Path(sys.argv[0]).name
    if name == "cli.py":  # a job of a cluster; what it prints is read elsewhere
        return "tokenpool"
    if shutil.which(name, path=_USERS_PATH) is not None:
        return name
    path = Path(sys.argv[0]).absolute()
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def use_own_scripts() -> None:
    """Puts this interpreter's scripts on the PATH.

    DeepSpeed builds an op with ninja, which lies there, and not on the PATH of somebody who calls
    `.venv/bin/tokenpool` without activating the environment.
    """
    scripts = sysconfig.get_path("scripts")
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", "")])


class Screen:
    """Where a search reports to its user.

    On a terminal there are rules and live bars; in a pipe or a log each fact is one line.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)

    def heading(self, title: str) -> None:
        """Begins a stage."""
        if self.console.is_terminal:
            self.console.print(Rule(f"[bold]{title}[/bold]", align="left"))
        else:
            self.say(f"== {title}")

    def say(self, text: str, style: str | None = None) -> None:
        """Prints one line, without secrets; brackets in it mean nothing special."""
        self.console.print(redactor().text(text), style=style, markup=False, soft_wrap=True)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Bar]:
        """A bar for as long as the block runs."""
        if not self.console.is_terminal:
            yield Bar(self, label, total)
            return
        with self._live(MofNCompleteColumn()) as live:
            yield Bar(self, label, total, live)

    @contextmanager
    def share_of(self, label: str, total: int) -> Iterator[ShareBar]:
        """A bar in hundredths of a work of known size, with the time left."""
        if not self.console.is_terminal:
            yield ShareBar(self, label, total)
            return
        with self._live(TaskProgressColumn()) as live:
            yield ShareBar(self, label, total, live)

    def _live(self, done: ProgressColumn) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            done,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
        )


def table(title: str, headings: Iterable[str], left: Collection[str] = ()) -> Table:
    """A table of numbers, aligned at the right but for the columns `left`."""
    made = Table(title=title)
    for heading in headings:
        made.add_column(heading, justify="left" if heading in left else "right")
    return made


class Bar:
    """The progress of one stage."""

    def __init__(self, screen: Screen, label: str, total: int, live: Progress | None = None):
        self._screen, self._label, self._total, self._live = screen, label, total, live
        self._done = self._said = 0
        self._task = live.add_task(label, total=total, note="") if live is not None else None

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Counts steps as done."""
        self._done += steps
        if self._live is not None and self._task is not None:
            self._live.update(self._task, advance=steps, note=note)
            return
        tenth = self._done * _PLAIN_STEPS // max(1, self._total)
        if tenth > self._said:
            self._said = tenth
            suffix = f"  {note}" if note else ""
            self._screen.say(f"{self._label}: {self._done}/{self._total}{suffix}")


class ShareBar:
    """How much of a work is done; off a terminal a line now and then."""

    def __init__(self, screen: Screen, label: str, total: int, live: Progress | None = None):
        self._screen, self._label, self._total, self._live = screen, label, total, live
        self._done, self._note = 0, ""
        self._begun = self._said = time.monotonic()
        self._task = live.add_task(label, total=total, note="") if live is not None else None

    def advance(self, work: int = 0, note: str | None = None) -> None:
        """Counts work as done; a total that was guessed too low grows."""
        self._done += work
        self._total = max(self._total, self._done)
        self._note = self._note if note is None else note
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=self._done, total=self._total, note=self._note)
            return
        now = time.monotonic()
        if self._done and now - self._said >= _PLAIN_SECONDS:
            self._said = now
            left = (now - self._begun) * (self._total / self._done - 1)
            minutes, seconds = divmod(round(left), 60)
            note = f"  {self._note}" if self._note else ""
            share = f"{100 * self._done // self._total}%"
            self._screen.say(f"{self._label}: {share}, {minutes}:{seconds:02d} left{note}")
