"""A headless Chromium for tests, driven by Playwright."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import ConsoleMessage, Frame, sync_playwright
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page as Tab

# Debian's own: Playwright would download a build of its own from a host that tests must not need.
EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser")

# With CI set, as .ci/run does, a machine without one is a failure.
needed = pytest.mark.skipif(
    EXECUTABLE is None and not os.environ.get("CI"),
    reason="needs Chromium: apt-get install chromium",
)

_FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def place_of(point_id: str) -> str:
    """JavaScript that says where a point of the chart stands in its window."""
    return f"""(() => {{
    const chart = document.getElementById('chart'), layout = chart._fullLayout;
    const box = chart.getBoundingClientRect();
    const trace = chart.data.find(t => (t.customdata || []).includes({point_id!r}));
    const at = trace.customdata.indexOf({point_id!r});
    return [box.left + layout.xaxis._offset + layout.xaxis.d2p(trace.x[at]),
            box.top + layout.yaxis._offset + layout.yaxis.d2p(trace.y[at])];
    }})()"""


class Page:
    """One tab.

    Attributes:
        console: Errors and warnings the page wrote, and uncaught exceptions.
        requests: Addresses the page asked for, in order.
    """

    def __init__(self, tab: Tab):
        self._tab = tab
        self.console: list[str] = []
        self.requests: list[str] = []
        tab.on("console", self._note)
        tab.on("pageerror", lambda error: self.console.append(str(error)))
        tab.on("request", lambda request: self.requests.append(request.url))

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.console.append(f"{message.text} {message.location.get('url', '')}")

    def open(self, address: str) -> None:
        """Goes to an address and waits until it is loaded."""
        self._tab.goto(address, wait_until="load", timeout=60_000)

    def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression."""
        return self._tab.evaluate(expression)

    def wait(self, expression: str, seconds: float = 30.0) -> Any:
        """Waits until an expression is true; its value."""
        return _wait(lambda: self.evaluate(expression), expression, seconds)

    def wait_frame(self, expression: str, seconds: float = 30.0) -> Callable[[str], Any]:
        """Waits until an expression is true in some frame of the page; evaluates in that frame."""

        def found() -> Frame | None:
            for frame in self._tab.frames:
                try:
                    if frame.evaluate(expression):
                        return frame
                except PlaywrightError:  # the frame is gone or not there yet
                    continue
            return None

        frame: Frame = _wait(found, f"in a frame: {expression}", seconds)
        return frame.evaluate

    def text(self, selector: str) -> str:
        """Visible text of an element."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def mouse(self, kind: str, x: float, y: float) -> None:
        """Moves, presses or releases the mouse."""
        self._tab.mouse.move(x, y)
        if kind == "mousePressed":
            self._tab.mouse.down()
        elif kind == "mouseReleased":
            self._tab.mouse.up()

    def click(self, x: float, y: float) -> None:
        """Clicks at a point of the window."""
        self._tab.mouse.click(x, y)

    def key(self, name: str) -> None:
        """Presses a key."""
        self._tab.keyboard.press(name)

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """Sets the window's size in CSS pixels."""
        self._tab.set_viewport_size({"width": width, "height": height})
        session = self._tab.context.new_cdp_session(self._tab)
        session.send(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone},
        )

    def screenshot(self, path: Path) -> None:
        """Writes what is seen as a PNG."""
        self._tab.screenshot(path=path)


def _wait(probe: Callable[[], Any], what: str, seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = probe()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"never came true: {what}")


@contextmanager
def browse(profile: Path) -> Iterator[Page]:
    """A page in a fresh browser that is ended afterwards."""
    assert EXECUTABLE is not None, "no Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=EXECUTABLE, headless=True, chromium_sandbox=False, args=_FLAGS
        )
        try:
            yield Page(context.pages[0])
        finally:
            context.close()
