"""Real commands that something happens to: started, listened to, and looked at from outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

TOKENPOOL = [sys.executable, "-m", "pipelines.cli"]


class Command:
    """A `tokenpool` command in a session of its own.

    Args:
        words: after `tokenpool`.
        cwd: where it is typed.
        env: variables beside those of this process.
        before: the command that runs it, if one does.
    """

    def __init__(
        self, *words: str, cwd: Path, env: dict[str, str] | None = None, before: Sequence[str] = ()
    ) -> None:
        self.lines: list[tuple[float, str]] = []
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            [*before, *TOKENPOOL, *words],
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A shell starts what runs in the background (a test, perhaps) deaf to Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def wait_for(self, pattern: str, timeout: float = 300, start: int = 0) -> re.Match[str]:
        """The first line from `start` on in which the pattern is found."""
        end = time.monotonic() + timeout
        while True:
            alive = self.process.poll() is None
            for _, line in list(self.lines)[start:]:
                if found := re.search(pattern, line):
                    return found
            assert alive, f"it ended with {self.process.returncode} before {pattern}:\n{self.text}"
            assert time.monotonic() < end, f"no {pattern} within {timeout} s:\n{self.text}"
            time.sleep(0.05)

    def when(self, pattern: str) -> float:
        """When a line with the pattern came, by the monotonic clock."""
        return next(at for at, line in self.lines if re.search(pattern, line))

    def family(self) -> list[psutil.Process]:
        """The command's process and all below it."""
        try:
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def named(self, name: str) -> list[psutil.Process]:
        """Those of its processes that Ray calls so, by age."""
        found = []
        for process in self.family():
            try:
                if (process.cmdline() or [""])[0].startswith(f"ray::{name}"):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return sorted(found, key=lambda process: process.create_time())

    def end(self, timeout: float = 600) -> int:
        """Waits for the end: its exit code."""
        code = self.process.wait(timeout)
        self._listener.join(10)
        return code

    def kill(self) -> None:
        """Whatever is left of it, so that no test leaves anything behind."""
        for process in self.family():
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
